"""Scores of checkpoints on held-out problems."""
