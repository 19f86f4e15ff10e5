"""Random histories of the Lua scripts on a real Redis, each checked against a model of a page."""
