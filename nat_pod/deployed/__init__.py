"""What stands in a tenancy, asked by Pulumi's Automation API with the engineer's own CLI, backend and credentials."""
