"""Figures with a verdict, and the least time that they could be."""
