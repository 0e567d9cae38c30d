"""One adapter per wrapper: the only code that touches it."""
