"""Wall clocks that jump, of single processes."""
