"""How gradients become their sum over ranks."""
