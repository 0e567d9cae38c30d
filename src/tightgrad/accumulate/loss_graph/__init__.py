"""Reads the end of a loss's graph, and what can be told by it. One walk, `terms`, is what all looks begin with."""
