"""What runs: plans, their parts by id, and what happens at inf or NaN."""
