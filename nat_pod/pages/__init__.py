"""What others read: pictures and hand-over pages."""
