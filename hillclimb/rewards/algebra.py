"""The comparison of two mathematical expressions, by math-verify and SymPy.

Importing it loads SymPy, and a call may hang: it is called in the workers of a `GraderPool` alone.
math-verify's own timeouts are switched off, because they work in a main thread only and the pool's
deadline covers them.
"""

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

from hillclimb.rewards.graded import Graded

logging.getLogger("math_verify").setLevel(logging.ERROR)

_POWER = re.compile(r"\^\s*(-?\d+)")  # 2^10 is two to the ten


def compare(answer: str, reference: str) -> Graded:
    """1 for an equal expression, 0 otherwise; None if the reference is not mathematics."""
    wanted = _parsed(reference)
    if not wanted:
        return Graded(None, "the reference does not parse")
    try:
        given = _parsed(answer)
    except (ValueError, TypeError, ArithmeticError) as error:
        return Graded(0.0, f"the answer does not parse ({type(error).__name__})")
    if not given:
        return Graded(0.0, "the answer does not parse")
    same = verify(wanted, given, timeout_seconds=None, raise_on_error=True)
    return Graded(float(same), "equal" if same else "different")


def _parsed(expression: str) -> list[object]:
    """SymPy's reading of an expression and its text; empty where it is no mathematics."""
    latex = _POWER.sub(r"^{\1}", expression.replace("**", "^"))
    found = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,
        raise_on_error=True,
    )
    return found if any(not isinstance(item, str) for item in found) else []
