"""What a user reads: figures, the page, predictions."""
