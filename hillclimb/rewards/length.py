"""The length penalty (report §3.1)."""

from __future__ import annotations


def length_penalty(tokens: int, longest: int, pass_rate: float) -> float:
    """R_len = rho_q * |y| / l_max, in [0, 1].

    `tokens` is the response's length, `longest` the limit of the current length stage, `pass_rate`
    the share of the prompt's group that passes: brevity counts where the problem is easy.
    """
    if longest <= 0 or tokens < 0 or not 0 <= pass_rate <= 1:
        raise ValueError(
            f"length_penalty needs tokens >= 0, longest > 0 and a pass rate in [0, 1], "
            f"got {tokens}, {longest} and {pass_rate}"
        )
    return pass_rate * min(tokens, longest) / longest
