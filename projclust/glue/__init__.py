"""GLUE: tasks and metrics, the training loop, and cells that survive a kill."""
