"""Network namespaces, the machines in them, and packets."""
