"""Local updates: several steps of each replica between two rounds."""
