"""One webhook's way: through the door, into the inbox, to its handler."""

from __future__ import annotations

from tests.receiver.house import House, body_of, on_every_inbox


@on_every_inbox()
async def test_a_webhook_is_stored_answered_and_handled_once(house: House) -> None:
    """The same webhook again is answered 200 as well, and nothing happens."""
    body = body_of("response.completed")
    answer = await house.push("wh_1", body)
    assert (answer.status, answer.body) == (200, b'{"received":true}')
    await house.until(lambda: house.state("wh_1") == "handled")
    assert house.handled == [("wh_1", "response.completed")]
    assert (await house.push("wh_1", body)).status == 200
    await house.pass_time(5)
    assert house.ids == ["wh_1"]
