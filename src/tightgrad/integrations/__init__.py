"""Thin bridges to libraries that run the training loop themselves; each is imported by its own name only."""
