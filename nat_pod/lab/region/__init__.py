"""A simulated OCI region."""
