"""The published vectors, and the published libraries as judges of what we sign."""

from __future__ import annotations

import pytest

from runbell.errors import SignatureMismatch
from runbell.webhooks import Secret, headers_for, sign, verify

VECTORS = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=",
        "wh_685c059ae39c8190af8c71ed1022a24d",
        1750861210,
        (
            b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": '
            b'1750861210, "type": "response.completed", "data": {"id": "resp_123"}}'
        ),
        "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=",
    ),
]


@pytest.mark.parametrize(("secret", "id_", "stamp", "body", "signature"), VECTORS)
def test_the_published_vectors(
    secret: str, id_: str, stamp: int, body: bytes, signature: str
) -> None:
    key = Secret.parse(secret)
    assert sign([key], id_, stamp, body) == signature
    headers = headers_for([key], id_, stamp, body)
    assert verify([key], headers, body, now_ms=stamp * 1000).id == id_


def test_a_signature_is_compared_to_the_letter() -> None:
    """`1OA=` and `1OE=` mean the same bytes to a lenient decoder of base64."""
    secret, id_, stamp, body, signature = VECTORS[0]
    headers = headers_for([Secret.parse(secret)], id_, stamp, body)
    headers["webhook-signature"] = signature.removesuffix("1OE=") + "1OA="
    with pytest.raises(SignatureMismatch):
        verify([Secret.parse(secret)], headers, body, now_ms=stamp * 1000)
