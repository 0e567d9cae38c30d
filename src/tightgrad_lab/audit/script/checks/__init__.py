"""The checks of one run of a script, one file each; `judge` asks all of them."""
