"""Tests of the chat demo: its app and its page, on a real node and a real Redis."""
