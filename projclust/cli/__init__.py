"""The command line: one file a command, no arithmetic."""

from .app import main

__all__ = ["main"]
