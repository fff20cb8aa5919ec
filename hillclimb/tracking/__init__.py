"""Tracking: what was made, with which numbers, from what, told to MLflow.

Whoever makes artifacts writes records to a local outbox and goes on; a sender of low priority
delivers them. MLflow being away slows nothing and loses nothing.
"""

from hillclimb.tracking.outbox import Outbox, RunKey, RunLog, default_uri
from hillclimb.tracking.sending import Sender, Status

__all__ = ["Outbox", "RunKey", "RunLog", "Sender", "Status", "default_uri"]
