"""What was measured: the files under runs/ and those that come with the package, read, checked and compared."""
