"""How numbers are written."""

from __future__ import annotations

__all__ = ["about", "number", "percent"]


def number(value: float) -> str:
    """Three digits that count, or all in front of the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(value: float) -> str:
    """Three digits that count, for a sentence."""
    return number(float(f"{value:.3g}"))


def percent(share: float) -> str:
    """A share; what is small has a digit more."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
