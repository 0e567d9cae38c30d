"""What a rank remembers, as tensors and numbers, and the folders that it is written to."""
