"""Lines of the code whose loss a test must notice, and what breaks them: ``python -m tests.broken``."""
