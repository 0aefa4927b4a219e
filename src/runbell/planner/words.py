"""How numbers are written, and read."""

from __future__ import annotations

import math
import re

from runbell.errors import InvalidSetting

__all__ = ["about", "amount", "dollars", "number", "percent", "price", "share_of"]


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


GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|[1-9]\d{0,2}(?:_\d{3})+(?:\.\d*)?"
"""Thousands, as the tables of a plan have them, or as in a program."""

EITHER = r"[1-9]\d{0,2}\.\d{3}|\d{1,3}(?:\.\d{3}){2,}|\d[\d.]*,\d*"
"""What is one number to who writes decimals with a point, and another to who writes a comma."""

TIMES = {"": 1.0, "k": 1e3, "m": 1e6}


def amount(name: str, text: str) -> float:
    """A number of runs, calls or dollars that somebody wrote: `100000`, `100,000`, `100_000`,
    `100k`, `2M`, `1e5`.

    Args:
        name: what it is for, for the message.

    Raises:
        InvalidSetting: it is none, or may be either of two.
    """
    digits, factor = re.fullmatch(r"\s*(.*?)\s*([kKM]?)\s*", text, re.DOTALL).groups()  # type: ignore[union-attr] # matches all
    plain = re.sub("[,_]", "", digits) if re.fullmatch(GROUPED, digits) else digits
    if plain == digits and re.fullmatch(EITHER, digits):
        raise InvalidSetting(
            f"{name} is {text!r}, which may be either of two numbers: write thousands without a "
            "separator or with a comma (1500 or 1,500), and decimals with a point (1.5)"
        )
    try:
        return float(plain) * TIMES[factor.lower()]
    except ValueError:
        raise InvalidSetting(
            f"{name} is {text!r}: a number is needed, as 100000, 100,000, 100k or 2M"
        ) from None
