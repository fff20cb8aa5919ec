"""Environments: what a problem asks, what happens when the model acts, how it is checked."""
