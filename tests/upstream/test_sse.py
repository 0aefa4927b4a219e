"""Server-sent events, cut anywhere."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from runbell.service.backends.upstream.sse import Event, EventDecoder

LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"data: ",
        b"event: x",
        b": comment",
        b"id: 1",
        b"",
        b"",
        b"{7",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def decoded(parts: list[bytes]) -> list[Event]:
    decoder = EventDecoder()
    events = [event for part in parts for event in decoder.feed(part)]
    return events + decoder.end()


@seed(1)
@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 80), max_size=12))
def test_where_the_bytes_are_cut_changes_nothing(
    lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(line + end for line, end in lines)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[start:end] for start, end in pairwise(places)]
    assert decoded(parts) == decoded([data])


@seed(2)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS)))
def test_how_lines_end_changes_nothing(lines: list[tuple[bytes, bytes]]) -> None:
    """But for an empty line behind a carriage return alone, which reads as one line end."""
    plain = b"".join(line + b"\n" for line, _ in lines)
    assert decoded([plain.replace(b"\n", b"\r\n")]) == decoded([plain])
    assert decoded([plain.replace(b"\n", b"\r")]) == decoded([plain])


@seed(3)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30)))
def test_no_bytes_break_it(parts: list[bytes]) -> None:
    decoded(parts)


def test_what_an_event_is() -> None:
    data = b"\xef\xbb\xbfevent: x\ndata: a\ndata:b\n\n: c\n\nid: 1\n\ndata: last"
    assert decoded([data]) == [Event("x", b"a\nb"), Event("", b"last")]
