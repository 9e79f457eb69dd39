"""What the engineer types."""
