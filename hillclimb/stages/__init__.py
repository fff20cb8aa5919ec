"""Stages: one process turns one request into one artifact."""
