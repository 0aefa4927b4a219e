"""The document and its page as they are served: without a key, since they hold nobody's data."""

from __future__ import annotations

import json
from functools import cache

from runbell.service.routes.routing import Answer
from runbell.service.wire.preferences import entity_tag, knows

__all__ = ["PATHS", "published"]

PATHS = ("/openapi.json", "/docs")
"""Where they are."""


def published(path: str, if_none_match: str) -> Answer:
    """The answer to a GET of one of `PATHS`."""
    whole = _whole(path)
    if knows(if_none_match, whole.headers["etag"]):
        return Answer(304, b"", whole.headers)
    return whole


@cache
def _whole(path: str) -> Answer:
    """Made when it is first asked for: most processes never are, and start sooner without."""
    from runbell.service.openapi.document import document
    from runbell.service.openapi.page import CONTENT_POLICY, page

    if path == "/docs":
        body = page(document()).encode()
        headers = {
            "content-security-policy": CONTENT_POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        content_type = "text/html; charset=utf-8"
    else:
        body = json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()
        # Tools that run in a browser may read it from anywhere.
        headers = {"access-control-allow-origin": "*"}
        content_type = "application/json"
    # Looked at each time whether it is still the same: a new version has a new document.
    cached = {"etag": entity_tag(body), "cache-control": "no-cache"}
    return Answer(200, body, {**cached, **headers}, content_type)
