"""``--bus stream``: what was published while a node was away arrives once it is back. docs/guarantees.md names them."""
