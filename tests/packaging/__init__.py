"""Tests of what is released: the wheel, the sdist and the pure wheel that ``make test`` built into dist/."""
