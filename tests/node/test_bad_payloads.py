"""Being written by another engineer at this moment (reassigned by the lead): do not write this file."""
