"""What a user reads: figures and the page."""
