"""From images and a recipe to a checkpoint."""
