"""How numbers are written."""

from __future__ import annotations

import math

__all__ = ["about", "dollars", "number", "percent", "price", "share_of"]


def number(value: float) -> str:
    """Three digits that count, or all in front of the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return "under 0.001" if 0 < value < 0.0005 else f"{value:.3g}"


def about(value: float) -> str:
    """Three digits that count, for a sentence."""
    return number(float(f"{value:.3g}"))


def percent(share: float) -> str:
    """A share; what is small has a digit more, and what is huge is told in times."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if share >= 10:
        return f"{about(share)} times"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def share_of(share: float, whole: str) -> str:
    """A share, of what."""
    return f"{percent(share)} {whole}" if share >= 10 else f"{percent(share)} of {whole}"


def dollars(value: float) -> str:
    """An amount: to the cent, or what is below one."""
    if 0 < value < 0.005:
        return "under $0.01"
    return f"${value:,.0f}" if value >= 1e6 else f"${value:,.2f}"


def price(value: float) -> str:
    """Of one call: two digits that count, and no exponent."""
    if value <= 0:
        return "$0"
    digits = max(2, 1 - math.floor(math.log10(value)))
    return f"${value:,.{digits}f}" if value < 1 else f"${value:,.2f}"
