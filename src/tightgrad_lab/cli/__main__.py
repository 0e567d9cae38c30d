"""`python -m tightgrad_lab.cli`, for launchers that start modules."""

from tightgrad_lab.cli import main

main()
