"""Tests of the helper; they need ``redis`` and a server binary, nothing compiled."""
