"""How reports print numbers: differences with their sign, intervals, p-values."""

from __future__ import annotations

_LEAST_SHOWN = 0.0001


def signed(share: float, digits: int = 1) -> str:
    """A difference of shares in points, with its sign; nothing is neither -0.0 nor less."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


def signed_interval(low: float | None, high: float | None) -> str:
    """An interval of a difference; ``-`` where there is none."""
    return "-" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def p_value(p: float | None) -> str:
    """A p-value in a cell, never 0; ``no test`` where there is none."""
    if p is None:
        return "no test"
    return f"< {_LEAST_SHOWN:.4f}" if p < _LEAST_SHOWN else f"{p:.2g}"


def equal_to(p: float) -> str:
    """A p-value in a sentence: ``p = 0.03`` or ``p < 0.0001``."""
    return f"p {p_value(p)}" if p < _LEAST_SHOWN else f"p = {p_value(p)}"
