"""Faults that really happen: processes are killed and frozen, connections cut. docs/guarantees.md names the tests."""
