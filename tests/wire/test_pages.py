"""A query string says which page, or is refused; rows become that page."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.errors import RequestRefused
from runbell.service.wire.objects import encode
from runbell.service.wire.pages import (
    INCLUDABLE,
    EventQuery,
    PageQuery,
    check_no_query,
    event_query,
    include_query,
    page_of,
    page_query,
)
from runbell.storage.paging import Page

TYPES = ("thread.run.created", "thread.run.completed", "thread.run.failed", "other.thing")


def refused(read, params, *more) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        read(params, *more)
    assert caught.value.status == 400
    return caught.value


def test_without_parameters_it_is_the_first_twenty_newest_first():
    assert page_query([]) == PageQuery(Page(limit=20, order="desc"))
    assert page_query([("api-version", "2024-05-01-preview")]) == PageQuery()


def test_every_parameter_is_read():
    params = [("limit", "100"), ("order", "asc"), ("after", "a"), ("before", "b"), ("run_id", "r")]
    assert page_query(params, {"run_id"}) == PageQuery(Page(100, "asc", "a", "b"), "r")


@pytest.mark.parametrize(
    ("params", "message", "param", "code"),
    [
        (
            [("limit", "101")],
            (
                "Invalid 'limit': integer above maximum value. "
                "Expected a value <= 100, but got 101 instead."
            ),
            "limit",
            "integer_above_max_value",
        ),
        (
            [("limit", "0")],
            (
                "Invalid 'limit': integer below minimum value. "
                "Expected a value >= 1, but got 0 instead."
            ),
            "limit",
            "integer_below_min_value",
        ),
        (
            [("limit", "ten")],
            "Invalid type for 'limit': expected an integer, but got a string instead.",
            "limit",
            "invalid_type",
        ),
        (
            [("order", "up")],
            "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.",
            "order",
            "invalid_value",
        ),
        (
            [("limit", "1"), ("limit", "2")],
            "Invalid 'limit': query parameter given more than once.",
            "limit",
            "invalid_value",
        ),
        (
            [("page", "2")],
            "Unknown query parameter: 'page'.",
            "page",
            "unknown_parameter",
        ),
        (
            [("run_id", "run_1")],
            "Unknown query parameter: 'run_id'.",
            "run_id",
            "unknown_parameter",
        ),
        (
            [("limit[]", "2")],
            "Unknown query parameter: 'limit[]'.",
            "limit[]",
            "unknown_parameter",
        ),
        (
            [("after", "")],
            (
                "Invalid 'after': string too short. Expected a string with minimum length 1, "
                "but got an empty string instead."
            ),
            "after",
            "string_below_min_length",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(params, message, param, code):
    error = refused(page_query, params)
    assert (error.message, error.param, error.code) == (message, param, code)


@pytest.mark.parametrize("text", ["", " 5", "+5", "1_0", "5.0", "\u0665", "1" * 5000, "0x5"])
def test_a_limit_is_digits_and_nothing_else(text):
    assert refused(page_query, [("limit", text)]).code == "invalid_type"


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4))
def test_any_query_is_read_or_refused(params):
    for read in (page_query, include_query, lambda query: event_query(query, TYPES)):
        with contextlib.suppress(RequestRefused):
            read(params)


def test_include_comes_once_repeated_or_with_brackets():
    for name in ("include", "include[]"):
        assert include_query([(name, INCLUDABLE)]) == (INCLUDABLE,)
    both = [("include[]", INCLUDABLE), ("include", INCLUDABLE)]
    assert page_query(both, {"include"}).include == (INCLUDABLE,)
    assert refused(include_query, [("include", "everything")]).message == (
        f"Invalid value: 'everything'. The only supported value is: '{INCLUDABLE}'."
    )


def test_a_request_that_knows_no_parameter_says_so():
    check_no_query([("api-version", "1")])
    assert refused(check_no_query, [("limit", "1")]).param == "limit"


def test_events_are_asked_for_by_type():
    assert event_query([], TYPES) == EventQuery(limit=20, after=None, types=None)
    many = [("types", "thread.run.failed,other.thing"), ("types", "thread.run.created")]
    assert event_query([*many, ("after", "evt_1"), ("limit", "3")], TYPES) == EventQuery(
        3, "evt_1", frozenset({"thread.run.failed", "other.thing", "thread.run.created"})
    )
    assert event_query([("types", "thread.run.*")], TYPES).types == frozenset(TYPES[:3])


@pytest.mark.parametrize("types", ["", "thread.run.finished", "thread.run.created,", "*", "x.*"])
def test_an_event_type_that_does_not_exist_is_refused(types):
    """Taken silently, it would give an empty feed for ever."""
    assert refused(event_query, [("types", types)], TYPES).param == "types"


@pytest.mark.parametrize("more", [True, False])
def test_a_page_names_its_first_and_last_row(more):
    page = page_of((["a", "b"], more), lambda row: {"id": row}, id_of=str)
    assert json.loads(encode(page)) == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "b"}],
        "first_id": "a",
        "last_id": "b",
        "has_more": more,
    }


def test_an_empty_page_has_no_ids():
    assert json.loads(encode(page_of(([], False), str, id_of=str))) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
