"""How large a batch should be: small ones at equal text, the critical size by branching, and a batch that grows."""
