"""The Autobahn testsuite against a node: ``make autobahn``."""
