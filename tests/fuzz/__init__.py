"""Every input path under random bytes: property tests, and fuzzing under AddressSanitizer (`python -m tests.fuzz`)."""
