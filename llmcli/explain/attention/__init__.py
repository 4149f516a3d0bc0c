"""What attention heads do at one position of a text."""
