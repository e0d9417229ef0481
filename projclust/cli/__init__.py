"""The command line: commands derived from declared options, and what they print. No arithmetic."""

from projclust.cli.entry import main

__all__ = ["main"]
