"""Mappings as netfilter rules, and rules as text."""
