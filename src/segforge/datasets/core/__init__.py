"""A data set on disk: its index, its images and labels, and what a network is fed of them."""
