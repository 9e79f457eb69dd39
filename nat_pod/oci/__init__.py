"""The plan as OCI resources."""
