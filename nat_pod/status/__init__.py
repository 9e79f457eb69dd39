"""What the NAT VMs report, held against the plan."""
