"""What a pipeline measures about its steps."""
