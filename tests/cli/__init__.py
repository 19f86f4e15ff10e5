"""The command, its options and the group of workers."""
