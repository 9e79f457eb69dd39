"""The Pulumi engine, and what it talks to."""
