"""hillclimb: a reasoning model made from raw documents, every stage a traceable asset."""

__version__ = "0.1.0"
