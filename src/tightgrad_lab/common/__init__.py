"""What experiments, bench and planning share: a small model and its data, labels of methods, recommended plans."""
