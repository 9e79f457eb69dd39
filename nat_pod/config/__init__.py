"""The stack file: read, checked, and written back."""
