"""The command `tightgrad`: one file per verb. Nothing heavy is imported before a verb needs it."""

from tightgrad_lab.cli.app import main

__all__ = ["main"]
