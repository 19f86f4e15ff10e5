"""The fixture that all tests of the embedded Redis share."""

from tests.embedded.runtime import runtime

__all__ = ["runtime"]
