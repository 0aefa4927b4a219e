"""What a request's query string may say, and how rows become one page of a list.

`after` asks for the rows behind the cursor, `before` for those that immediately precede it, still
in the requested order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from runbell.runs import RunStatus
from runbell.service.wire import refusals
from runbell.service.wire.objects import ListPage
from runbell.storage.deliveries import DeliveryFilter, DeliveryStatus
from runbell.storage.paging import Page
from runbell.storage.runs import RunFilter

__all__ = [
    "DeliveriesQuery",
    "EventQuery",
    "PageQuery",
    "RunsQuery",
    "check_no_query",
    "deliveries_query",
    "event_query",
    "include_query",
    "page_of",
    "page_query",
    "runs_query",
]

FIRST_PAGE = Page()
DEFAULT_LIMIT = FIRST_PAGE.limit
MAX_LIMIT = 100
MAX_IDS = 200
MAX_TIME = 999_999_999_999
"""The latest moment, in seconds since the epoch, that a query can name."""
ANY_RUN = RunFilter()
ANY_DELIVERY = DeliveryFilter()

Order = Literal["asc", "desc"]
Params = Iterable[tuple[str, str]]

INCLUDABLE = "step_details.tool_calls[*].file_search.results[*].content"
"""The one thing that `include` can ask for. No run has it, since no run searches files."""

_PAGING = frozenset({"limit", "order", "after", "before"})
_LISTS = frozenset({"include", "types", "status", "ids"})
"""Parameters that may be repeated, also with brackets after the name, as SDKs write them."""

Row = TypeVar("Row")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a list is asked for.

    Attributes:
        run_id: of messages, only those that this run made.
        include: what else to answer; see `INCLUDABLE`.
    """

    page: Page = FIRST_PAGE
    run_id: str | None = None
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunsQuery:
    """Which runs of a project are asked for: some by their ids, or a page of those that match.

    Attributes:
        ids: these runs, in this order; None asks for a page.
    """

    page: Page = FIRST_PAGE
    wanted: RunFilter = ANY_RUN
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeliveriesQuery:
    """Which deliveries of an endpoint are asked for."""

    page: Page = FIRST_PAGE
    wanted: DeliveryFilter = ANY_DELIVERY


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events are asked for, from the oldest on.

    Attributes:
        types: the exact types that are wanted; None is all.
    """

    limit: int = DEFAULT_LIMIT
    after: str | None = None
    types: frozenset[str] | None = None


def page_query(params: Params, also: Collection[str] = ()) -> PageQuery:
    """The page that a list's query asks for. `also` names what this list knows besides paging:
    "run_id", "include" or both.

    Raises:
        RequestRefused: (400) a parameter is unknown, repeated or not usable.
    """
    values = _values(params, _PAGING.union(also))
    return PageQuery(
        page=_page(values),
        run_id=_text(values, "run_id"),
        include=_include(values),
    )


def event_query(params: Params, known_types: Collection[str]) -> EventQuery:
    """The events that a query asks for.

    `types` names types, separated by commas, repeated or both; `thread.run.*` names all that begin
    so.

    Raises:
        RequestRefused: (400) a parameter is unknown, repeated or not usable, or no such type is
            among `known_types`.
    """
    values = _values(params, {"limit", "after", "types"})
    return EventQuery(
        limit=_limit(values),
        after=_text(values, "after"),
        types=_types(values["types"], known_types) if "types" in values else None,
    )


def runs_query(params: Params) -> RunsQuery:
    """The runs that a query asks for: `ids`, or paging with `status` and times of creation.

    Times are seconds since the epoch. `status` and `ids` are separated by commas, repeated or both.

    Raises:
        RequestRefused: (400) a parameter is unknown, repeated or not usable.
    """
    times = {"created_before", "created_after"}
    values = _values(params, _PAGING | times | {"status", "ids"})
    if "ids" in values:
        others = sorted(values.keys() - {"ids"})
        if others:
            reason = "it does not go with 'ids': leave one of the two out"
            raise refusals.invalid_value(others[0], reason)
        return RunsQuery(ids=_ids(values["ids"]))
    after = _time_ms(values, "created_after")
    return RunsQuery(
        page=_page(values),
        wanted=RunFilter(
            statuses=_statuses(values.get("status", [])),
            created_from_ms=None if after is None else after + 1000,
            created_before_ms=_time_ms(values, "created_before"),
        ),
    )


def deliveries_query(params: Params) -> DeliveriesQuery:
    """The deliveries that a query asks for. Times are those of the events, in seconds.

    Raises:
        RequestRefused: (400) a parameter is unknown, repeated or not usable.
    """
    times = {"created_before", "created_after"}
    values = _values(params, _PAGING | times | {"status", "run_id"}, lists=frozenset())
    after = _time_ms(values, "created_after")
    status: DeliveryStatus | None = None
    match values.get("status"):
        case None:
            pass
        case ["pending" | "succeeded" | "failed" as status]:
            pass
        case given:
            raise refusals.unsupported_value("status", given[0], get_args(DeliveryStatus))
    return DeliveriesQuery(
        page=_page(values),
        wanted=DeliveryFilter(
            status=status,
            run_id=_text(values, "run_id"),
            created_from_ms=None if after is None else after + 1000,
            created_before_ms=_time_ms(values, "created_before"),
        ),
    )


def include_query(params: Params) -> tuple[str, ...]:
    """What the query of a request that has `include` and nothing else asks for.

    Raises:
        RequestRefused: (400) a parameter or a value is unknown.
    """
    return _include(_values(params, {"include"}))


def check_no_query(params: Params) -> None:
    """For requests that know no parameter.

    Raises:
        RequestRefused: (400) there is one.
    """
    _values(params, ())


def page_of(
    found: tuple[Sequence[Row], bool], make: Callable[[Row], Item], *, id_of: Callable[[Row], str]
) -> ListPage[Item]:
    """The answer for a page of rows, in the order of the rows.

    `found` is what storage gives for a page: its rows, and whether the list goes on behind them.
    """
    rows, more = found
    return ListPage(
        data=[make(row) for row in rows],
        first_id=id_of(rows[0]) if rows else None,
        last_id=id_of(rows[-1]) if rows else None,
        has_more=more,
    )


def _values(
    params: Params, known: Collection[str], lists: Collection[str] = _LISTS
) -> dict[str, list[str]]:
    """The values by name. `api-version` is Azure's; it says nothing that is not known already."""
    values: dict[str, list[str]] = {}
    for given, value in params:
        if given == "api-version":
            continue
        name = given.removesuffix("[]")
        if name not in known or (given != name and name not in lists):
            raise refusals.unknown_query_parameter(given)
        if name in values and name not in lists:
            raise refusals.invalid_value(name, "query parameter given more than once")
        values.setdefault(name, []).append(value)
    return values


def _page(values: dict[str, list[str]]) -> Page:
    return Page(
        limit=_limit(values),
        order=_order(values),
        after=_text(values, "after"),
        before=_text(values, "before"),
    )


def _ids(given: list[str]) -> tuple[str, ...]:
    ids = tuple(dict.fromkeys(name.strip() for name in ",".join(given).split(",") if name.strip()))
    if not ids:
        raise refusals.too_short("ids", "array", 1, 0)
    if len(ids) > MAX_IDS:
        raise refusals.too_long("ids", "array", MAX_IDS, len(ids))
    return ids


def _statuses(given: list[str]) -> frozenset[RunStatus]:
    names = [name.strip() for name in ",".join(given).split(",")] if given else []
    for name in names:
        if name not in set(RunStatus):
            raise refusals.unsupported_value("status", name, list(RunStatus))
    return frozenset(RunStatus(name) for name in names)


def _time_ms(values: dict[str, list[str]], name: str) -> int | None:
    if name not in values:
        return None
    text = values[name][0]
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise refusals.invalid_type(name, ["integer"], "string")
    if int(text) > MAX_TIME:
        raise refusals.above_maximum(name, "integer", MAX_TIME, int(text))
    return int(text) * 1000


def _limit(values: dict[str, list[str]]) -> int:
    if "limit" not in values:
        return DEFAULT_LIMIT
    text = values["limit"][0]
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise refusals.invalid_type("limit", ["integer"], "string")
    limit = int(text)
    if limit > MAX_LIMIT:
        raise refusals.above_maximum("limit", "integer", MAX_LIMIT, limit)
    if limit < 1:
        raise refusals.below_minimum("limit", "integer", 1, limit)
    return limit


def _order(values: dict[str, list[str]]) -> Order:
    match values.get("order"):
        case None | ["desc"]:
            return "desc"
        case ["asc"]:
            return "asc"
        case given:
            raise refusals.unsupported_value("order", given[0], ["asc", "desc"])


def _text(values: dict[str, list[str]], name: str) -> str | None:
    """An empty cursor is a mistake: taken for none, it would give the first page again."""
    if name not in values:
        return None
    text = values[name][0]
    if not text:
        raise refusals.too_short(name, "string", 1, 0)
    return text


def _include(values: dict[str, list[str]]) -> tuple[str, ...]:
    for value in values.get("include", ()):
        if value != INCLUDABLE:
            raise refusals.unsupported_value("include", value, [INCLUDABLE])
    return tuple(dict.fromkeys(values.get("include", ())))


def _types(given: list[str], known: Collection[str]) -> frozenset[str]:
    types: set[str] = set()
    for name in ",".join(given).split(","):
        name = name.strip()
        if name.endswith(".*"):
            named = {each for each in known if each.startswith(name[:-1])}
        else:
            named = {name} & set(known)
        if not named:
            raise refusals.unsupported_value("types", name, [*known, "thread.run.*"])
        types |= named
    return frozenset(types)
