"""What is logged: one record a request, one a run's end, a line each; no key and no content."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import ConfigurationError, ModelError, StorageUnavailable
from runbell.service import logs
from runbell.service.logs import Exchange
from runbell.service.settings import Settings
from tests.protocol.scenario import ask, create_run, function_tool, outputs_for, say, until
from tests.served import Served, eventually

CANARY = "canary-7f3a"
"""Stands in everything that a client can say; it must not be in any log."""


def happy_path(served: Served) -> list[str]:
    """Every route of the protocol once, with the canary wherever a text can stand: request ids."""
    ids: list[str] = []
    client = served.client(watch=lambda answer: ids.append(answer.headers["x-request-id"]))
    tool: Any = {
        "type": "function",
        "function": {"name": CANARY, "description": CANARY, "parameters": {"title": CANARY}},
    }
    assistant = client.beta.assistants.create(
        model="echo",
        name=CANARY,
        instructions=CANARY,
        description=CANARY,
        metadata={CANARY: CANARY},
        tools=[tool, function_tool("f")],
    )
    until(client, ask(client, assistant, CANARY, metadata={CANARY: CANARY}), "completed")
    until(client, ask(client, assistant, f"fail server_error {CANARY}"), "failed")
    run = until(client, ask(client, assistant, f'call f {{"x": "{CANARY}"}}'), "requires_action")
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, [CANARY])
    )
    until(client, run, "completed")
    client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    thread = say(client, CANARY, metadata={CANARY: CANARY})
    client.beta.threads.messages.create(thread, role="user", content=CANARY)
    with client.beta.threads.runs.create(
        thread_id=thread, assistant_id=assistant.id, stream=True
    ) as stream:
        ids.append(stream.response.headers["x-request-id"])
        assert len(list(stream)) > 5
    until(client, create_run(client, assistant, thread, instructions=CANARY), "completed")
    client.beta.threads.delete(thread)
    api = served.api()
    paths = (
        f"/v1/assistants?after={CANARY}",
        f"/v1/{CANARY}",
        f"/v1/threads/{CANARY}",
        f"/v1/threads/thread_x/runs/{CANARY}%0AINFO%20forged",
        f"/v1/models/{CANARY}",
        f"/v1/events?after={CANARY}",
    )
    ids += [api.get(path).headers["x-request-id"] for path in paths]
    ids.append(api.post("/v1/assistants", {CANARY: CANARY}).headers["x-request-id"])
    bad = served.request("POST", "/v1/threads", body=CANARY.encode(), key=served.key)
    ids.append(bad.headers["x-request-id"])
    ids.append(served.request("GET", "/v1/models", key=f"sk-{CANARY}").headers["x-request-id"])
    return ids


@pytest.mark.parametrize("style", ["text", "json"])
def test_logs_hold_every_request_and_no_key_or_content(tmp_path: Path, style: str) -> None:
    args = ("--log-level", "debug", "--log-format", style)
    with Served(tmp_path, args=args) as served:
        ids = happy_path(served)
        lines = eventually(
            lambda: [*served.stderr().splitlines()] if ids[-1] in served.stderr() else None,
            "the last request is logged",
        )
        told = served.stderr() + served.stdout()
        assert CANARY not in told
        assert served.key is not None
        assert served.key not in told
        assert served.key[-8:] not in told
        assert "after=" not in told
        if style == "json":
            records = [json.loads(line) for line in lines]
        else:
            records = [text_record(line) for line in lines]
    requests = [record for record in records if record["logger"] == "runbell.requests"]
    assert sorted(record["request_id"] for record in requests) == sorted(ids)
    for record in requests:
        assert {"method", "route", "status", "ms", "request_id"} <= set(record)
        assert record["message"] == "answered"
    runs = [record for record in records if record["logger"] == "runbell.runs"]
    ends = [record for record in runs if record["level"] == "info"]
    assert sorted(record["type"] for record in ends) == [
        *["thread.run.completed"] * 4,
        "thread.run.failed",
    ]
    assert [r.get("error_code") for r in ends if r["type"] == "thread.run.failed"] == [
        "server_error"
    ]
    assert {"thread.run.created", "thread.run.in_progress", "thread.run.requires_action"} <= {
        record["type"] for record in runs if record["level"] == "debug"
    }


def text_record(line: str) -> dict[str, Any]:
    """A line of the text format, as the fields that it tells."""
    stamp, level, logger, rest = line.split(" ", 3)
    assert stamp.endswith("Z"), line
    message, *pairs = rest.split(" ")
    fields = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {"level": level.lower(), "logger": logger.rstrip(":"), "message": message, **fields}


def test_a_record_names_the_run_that_a_request_made_or_asked_for(tmp_path: Path) -> None:
    with Served(tmp_path, args=("--log-format", "json")) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="echo")
        run = until(client, ask(client, assistant, "hello"), "completed")
        # What is answered from the first answer is told like the first answer.
        keyed = {"Idempotency-Key": "once"}
        again = [
            client.beta.threads.create_and_run(assistant_id=assistant.id, extra_headers=keyed)
            for _ in range(2)
        ]
        keyed = {"Idempotency-Key": "streamed"}
        for _ in range(2):
            stream = client.beta.threads.create_and_run(
                assistant_id=assistant.id, stream=True, extra_headers=keyed
            )
            assert list(stream)[-1].event == "thread.run.completed"
        served.request("GET", "/healthz")
        served.request("GET", "/metrics")

        def records() -> list[dict[str, Any]] | None:
            found = [json.loads(line) for line in served.stderr().splitlines()]
            found = [each for each in found if each["logger"] == "runbell.requests"]
            return found if [each["route"] for each in found].count(both) == 4 else None

        both = "/v1/threads/runs"
        found = eventually(records, "all requests are logged")
    by_route = {record["route"]: record for record in found}
    made = by_route["/v1/threads/{thread_id}/runs"]
    assert (made["run_id"], made["thread_id"]) == (run.id, run.thread_id)
    read = by_route["/v1/threads/{thread_id}/runs/{run_id}"]
    assert (read["run_id"], read["thread_id"]) == (run.id, run.thread_id)
    assert by_route["/v1/threads"]["thread_id"] == run.thread_id
    made = [(each["run_id"], each["thread_id"]) for each in found if each["route"] == both]
    assert made[:2] == [(each.id, each.thread_id) for each in again]
    assert made[2] == made[3] != made[0]
    assert made[2][0].startswith("run_")
    assert {record["project_id"] for record in found} == {read["project_id"]}
    # Probes are for debugging alone.
    assert not {"/healthz", "/metrics"} & set(by_route)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a logger `careful` writes, in the style that the test sets on its handler."""
    stream = io.StringIO()
    logger = logging.getLogger("careful")
    logger.propagate = False
    handler = logging.StreamHandler(stream)
    logger.handlers = [handler]
    yield stream
    logger.handlers = []
    logger.propagate = True


def use(style: str) -> logging.Logger:
    logger = logging.getLogger("careful")
    logger.handlers[0].setFormatter(logs._Json() if style == "json" else logs._Text())
    return logger


def fail(error: BaseException) -> None:
    raise error


def chained() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        raise StorageUnavailable("the disk is full") from error


def grouped() -> None:
    raise ExceptionGroup(CANARY, [ValueError(CANARY), OSError("the disk is full")])


def noted() -> None:
    error = ValueError(CANARY)
    error.add_note(CANARY)
    raise error


def unreadable() -> None:
    eval(f"'{CANARY}' '")


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (chained, "the disk is full"),
        (grouped, "the disk is full"),
        (noted, "ValueError"),
        (unreadable, "SyntaxError"),
        (lambda: fail(ModelError("server_error", CANARY)), "ModelError"),
        (lambda: fail(sqlite3.OperationalError("no such table: x")), "no such table: x"),
        (lambda: json.loads(f"[{CANARY}"), "JSONDecodeError"),
        (lambda: int(CANARY), "ValueError"),
    ],
)
def test_an_exception_is_told_without_what_it_quotes(
    written: io.StringIO, style: str, cause: Any, shown: str
) -> None:
    logger = use(style)
    try:
        cause()
    except Exception:
        logger.exception("it failed")
    told = written.getvalue()
    assert CANARY not in told
    assert shown in told
    assert "test_logs.py" in told
    if style == "json":
        assert told.count("\n") == 1
        assert shown in json.loads(told)["exception"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_record_is_one_line_whatever_it_holds(written: io.StringIO, style: str) -> None:
    use(style).warning("one\n2026 INFO forged: two\r\x1b[31m\u2028three")
    told = written.getvalue()
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert "\r" not in told
    assert "\x1b" not in told


def test_ids_are_logged_where_they_look_like_ours(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "runbell.requests"):
        path = {"thread_id": "thread_a1", "run_id": "run 1\nforged"}
        logs.answered(Exchange("req_1", "GET", "/x", path=path), 200, 0.1)
    (record,) = caplog.records
    assert record.fields["thread_id"] == "thread_a1"
    assert "run_id" not in record.fields


@pytest.mark.parametrize(
    ("route", "status", "level"),
    [
        ("/v1/models", 200, "INFO"),
        ("/v1/models", 404, "INFO"),
        ("/v1/models", 503, "WARNING"),
        ("/metrics", 200, "DEBUG"),
        ("/readyz", 503, "DEBUG"),
    ],
)
def test_the_level_says_who_has_to_look(
    caplog: pytest.LogCaptureFixture, route: str, status: int, level: str
) -> None:
    with caplog.at_level(logging.DEBUG, "runbell.requests"):
        logs.answered(Exchange("req_1", "GET", route), status, 0.1)
    assert [record.levelname for record in caplog.records] == [level]


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "level", "style", "reads"),
    [
        (Terminal(), "info", "text", False),
        (Terminal(), "debug", "text", True),
        (Terminal(), "info", "json", True),
        (io.StringIO(), "info", "text", True),
    ],
)
def test_a_terminal_is_not_filled_with_reads_that_went_well(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, level: str, style: str, reads: bool
) -> None:
    root, before = logging.getLogger(), logging.getLogger().level
    with monkeypatch.context() as fresh:
        # As a process finds it at its start: here it is pytest's.
        fresh.setattr(root, "handlers", [])
        logs.configure(level, style, stream)
        for request_id, method, status in (
            ("req_read", "GET", 200),
            ("req_missing", "GET", 404),
            ("req_made", "POST", 200),
        ):
            logs.answered(Exchange(request_id, method, "/v1/models"), status, 0.1)
    root.setLevel(before)
    told = stream.getvalue()
    assert ("req_read" in told) == reads
    assert "req_missing" in told
    assert "req_made" in told


def test_times_are_utc_with_milliseconds() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    for created, stamp in (
        (1_800_000_000.0, "2027-01-15T08:00:00.000Z"),
        (1_800_000_000.9996, "2027-01-15T08:00:00.999Z"),
        (1_800_000_001.25, "2027-01-15T08:00:01.250Z"),
    ):
        record.created = created
        assert logs._Text().format(record) == f"{stamp} INFO x: hello"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="use text or json"):
        Settings.load({"log_format": "xml"}, {})
    assert Settings.load({}, {"RUNBELL_LOG_FORMAT": "json"}).log_format == "json"
