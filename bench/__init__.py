"""Benchmarks. ``python -m bench`` runs all of them and prints a table of ratios."""
