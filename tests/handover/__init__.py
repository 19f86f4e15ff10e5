"""A node's place passes from one process to the next."""
