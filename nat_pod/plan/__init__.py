"""Everything that follows from a configuration, as plain values."""
