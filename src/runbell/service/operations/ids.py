"""How things are named: ids that sort roughly by time and that nobody can guess."""

from __future__ import annotations

import os
from functools import lru_cache

from runbell.clock import Clock

__all__ = ["new_id", "new_request_id"]

_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 7  # base 62: enough until the year 2081
_RANDOM_DIGITS = 17  # about 100 bits

# A byte for each digit: a few digits are a little likelier than the others, which costs less than
# one bit of the hundred.
_DIGIT_OF_BYTE = bytes(_ALPHABET[byte % 62] for byte in range(256))


def new_id(prefix: str, clock: Clock) -> str:
    """`prefix`_ and 24 letters and digits, as OpenAI's ids have.

    The first seven say the millisecond, so that rows that are made together lie together in their
    indexes; the others are random.
    """
    digits = os.urandom(_RANDOM_DIGITS).translate(_DIGIT_OF_BYTE).decode()
    return f"{prefix}_{_time_digits(clock.now_ms())}{digits}"


@lru_cache(maxsize=16)
def _time_digits(now_ms: int) -> str:
    digits = bytearray()
    for _ in range(_TIME_DIGITS):
        now_ms, digit = divmod(now_ms, 62)
        digits.append(_ALPHABET[digit])
    return digits[::-1].decode()


def new_request_id() -> str:
    """An id for a request: nothing but random, since it need not sort."""
    return f"req_{os.urandom(16).hex()}"
