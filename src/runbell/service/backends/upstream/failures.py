"""What it means when a model server refuses or fails: the run's `last_error`, and whether to try
again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, Final

from runbell.errors import ErrorCode, ModelError
from runbell.pacing import wait_seconds
from runbell.service.backends.upstream.text import json_or_text, storable

__all__ = ["CallFailed", "Secret", "error_in_stream", "refusal", "wait_wanted"]

MAX_SENTENCE: Final = 500
"""Characters of what a server says about an error; some answer with the whole request."""

_TRANSIENT = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 507, 508, 520, 521, 522, 523, 524, 529}
)
"""Statuses after which the same request may succeed; from 520 on, Cloudflare's and Anthropic's."""

_PROMPT = frozenset({400, 413, 422})
"""Statuses that say that something is wrong with what was sent."""

_CONTEXT = re.compile(
    r"context[_ ](?:length|window|size)|(?:maximum|max|model'?s) context|too many tokens"
    r"|prompt is too long|prompt too long|input (?:is )?too long|input length|exceed_context",
    re.IGNORECASE,
)
"""How servers say that the prompt does not fit into the model. None of them agree on a code."""

_QUOTA = re.compile(r"insufficient_quota|billing|exceeded your current quota", re.IGNORECASE)
"""A 429 that waiting does not mend."""

_KEY = re.compile(r"invalid_api_key|API_KEY_INVALID|API key not valid")
"""A 400 that is about the key, as Google's server says it."""


class CallFailed(ModelError):
    """A call of a model server failed.

    Attributes:
        again: the same call may succeed later.
        after: seconds that the server wants to be left alone; None where it does not say.
        context: the prompt did not fit into the model.
        said: all that the server said about it, to be searched and never shown.
        status: the HTTP status, for logs; None where there was none.
        misplaced: what was asked for is not where it was looked for: the base URL may be wrong.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        again: bool = False,
        context: bool = False,
        said: str = "",
        status: int | None = None,
        misplaced: bool = False,
    ) -> None:
        super().__init__(code, message)
        self.again = again
        self.after: float | None = None
        self.context = context
        self.said = said
        self.status = status
        self.misplaced = misplaced


class Secret:
    """A key that may not show up in what is said, nor any part of it that is worth guessing on."""

    PART: Final = 8

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        last = max(0, len(self._key) - self.PART + 1)
        self._parts = {self._key[start : start + self.PART] for start in range(last)}

    def hidden(self, text: str) -> str:
        """The text with `***` where the key or a longer part of it was."""
        if not self._parts:
            # A key as short as this may be a word: "ollama" inside another word is not it.
            word = rf"(?<!\w){re.escape(self._key)}(?!\w)"
            return re.sub(word, "***", text) if self._key else text
        covered = bytearray(len(text))
        for start in range(len(text) - self.PART + 1):
            if text[start : start + self.PART] in self._parts:
                covered[start : start + self.PART] = b"\1" * self.PART
        stretches = groupby(zip(text, covered, strict=True), key=lambda pair: pair[1])
        return "".join(
            "***" if hidden else "".join(letter for letter, _ in stretch)
            for hidden, stretch in stretches
        )


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, secret: Secret, now_ms: int
) -> CallFailed:
    """What an answer with an error status means.

    Args:
        now_ms: the wall clock, for a Retry-After that is a date.
    """
    again = status in _TRANSIENT
    # OpenAI's servers say themselves what they think of another try.
    match headers.get("x-should-retry", "").lower():
        case "true":
            again = True
        case "false":
            again = False
    failed = _judged(status, json_or_text(body), secret, again=again)
    failed.said = body.decode(errors="replace")
    failed.after = wait_wanted(headers, now_ms)
    failed.misplaced = status in (404, 405)
    return failed


def error_in_stream(error: Any, secret: Secret) -> CallFailed:
    """What an error means that came in the place of a chunk."""
    details = error if isinstance(error, dict) else {}
    code = details.get("code", details.get("status"))
    status = code if isinstance(code, int) else None
    if isinstance(code, str) and code.isdigit():
        status = int(code[:3])
    if status is None or not 400 <= status <= 599:
        status = 429 if "rate_limit" in _gist(error) else 500
    return _judged(status, error, secret, again=status in _TRANSIENT)


def _judged(status: int, error: Any, secret: Secret, *, again: bool) -> CallFailed:
    sentence, gist = _sentence(error), _gist(error)
    context = status < 501 and status != 429 and bool(_CONTEXT.search(gist))
    code: ErrorCode = "server_error"
    if status == 429:
        code, what = "rate_limit_exceeded", "The model server is over its limit"
        again = again and not _QUOTA.search(gist)
    elif context:
        code, what, again = "invalid_prompt", "The prompt does not fit into the model", False
    elif status in (401, 403) or (status == 400 and _KEY.search(gist)):
        what = "The model server does not accept the key that it was given"
    elif status == 404:
        what = "The model server has no such model or path"
    elif status in _PROMPT:
        code, what = "invalid_prompt", "The model server refused the request"
    elif 300 <= status < 400:
        what = "The model server sends its callers elsewhere, which is not followed"
    else:
        what = "The model server failed"
    shown = _clipped(secret.hidden(sentence))
    message = f"{what} ({status}): {shown}" if shown else f"{what} ({status})."
    return CallFailed(code, message, again=again, context=context, said=gist, status=status)


def wait_wanted(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Seconds that a server asks for with `retry-after-ms` or `retry-after`."""
    milliseconds = wait_seconds(headers.get("retry-after-ms"), now_ms)
    if milliseconds is not None:
        return milliseconds / 1000
    return wait_seconds(headers.get("retry-after"), now_ms)


_SENTENCES = ("message", "detail", "msg", "error_message", "error")


def _details(error: Any) -> Any:
    """The object that says what is wrong: under `error` mostly, and in a list at Google's."""
    if isinstance(error, list):
        error = error[0] if error else None
    inner = error.get("error") if isinstance(error, dict) else None
    return inner if isinstance(inner, dict) else error


def _sentence(error: Any) -> str:
    """What a server says about an error; empty where it answers with a web page."""
    error = _details(error)
    for _ in range(4):
        if isinstance(error, list):
            error = error[0] if error else ""
        elif isinstance(error, dict):
            error = next((error[name] for name in _SENTENCES if error.get(name)), "")
    text = error if isinstance(error, str) else ""
    return "" if text.lstrip().startswith("<") else storable(" ".join(text.split()))


def _gist(error: Any) -> str:
    """The sentence and the names of the error, without what was sent, which some servers repeat."""
    details = _details(error)
    named = details if isinstance(details, dict) else {}
    names = [named.get(name) for name in ("code", "type", "status", "param")]
    return " ".join([_sentence(error), *(name for name in names if isinstance(name, str))])


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_SENTENCE else f"{text[:MAX_SENTENCE]}…"
