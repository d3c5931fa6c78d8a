"""Blocks that three families or more share, and nothing else."""
