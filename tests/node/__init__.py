"""Tests of the node, on a real server and with real sockets."""
