"""The command line: one file a command, no arithmetic."""

from projclust.cli.app import main

__all__ = ["main"]
