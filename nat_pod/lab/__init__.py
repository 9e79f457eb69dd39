"""The lab: a simulated OCI region, and its state as Linux network namespaces with real packets."""
