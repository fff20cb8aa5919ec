"""Rewards: verdicts on responses, and how their parts make one number.

Every grader returns data. "Could not tell" is a verdict of its own (`Graded.score` is None), never
a zero. Nothing here runs model-written code: `code` hands it to the sandbox that it is given.
"""
