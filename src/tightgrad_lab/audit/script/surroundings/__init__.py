"""What a script finds around it: packages, data, checkpoints and numbers that stand in for what is not there."""
