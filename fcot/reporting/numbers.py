"""How reports print numbers: differences with their sign, intervals, p-values."""

from __future__ import annotations

_LEAST_SHOWN = 0.0001


def signed(share: float, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign; zero is printed as +0.0."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


def signed_interval(low: float | None, high: float | None) -> str:
    """The interval of a difference in percentage points; ``-`` if there is none."""
    return "-" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def p_value(p: float | None) -> str:
    """A p-value in a table cell, never rounded to 0; ``no test`` if there is none."""
    if p is None:
        return "no test"
    return f"< {_LEAST_SHOWN:.4f}" if p < _LEAST_SHOWN else f"{p:.2g}"


def equal_to(p: float) -> str:
    """A p-value in a sentence: ``p = 0.03`` or ``p < 0.0001``."""
    return f"p {p_value(p)}" if p < _LEAST_SHOWN else f"p = {p_value(p)}"
