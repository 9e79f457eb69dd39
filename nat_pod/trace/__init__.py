"""What happens to a packet, without sending one."""
