"""The embedded Redis."""
