"""`runbell assistants`: what goes in comes out again; what cannot go in says where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runbell.cli.assistants import parse
from runbell.errors import ConfigurationError
from tests.cli.conftest import Command, NewProject

TUTOR: dict[str, Any] = {
    "id": "asst_Tutor9xqPpWJ0Bk4e0XrVY2a",
    "object": "assistant",
    "created_at": 1698982736,
    "name": "Coding Tutor",
    "description": None,
    "model": "gpt-4o",
    "instructions": "Make me better at coding.",
    "tools": [
        {"type": "code_interpreter"},
        {
            "type": "function",
            "function": {
                "name": "get-grade",
                "description": "The grade of a pupil.",
                "parameters": {
                    "type": "object",
                    "properties": {"year": {"type": "integer"}, "pupil": {"type": "string"}},
                },
                "strict": False,
            },
        },
    ],
    "tool_resources": {"code_interpreter": {"file_ids": []}},
    "metadata": {"owner": "Zoë"},
    "temperature": 0.3,
    "top_p": 1.0,
    "response_format": {"type": "json_object"},
    "reasoning_effort": None,
}


def assistant(number: int, **fields: Any) -> dict[str, Any]:
    """A small assistant; a higher number is a newer one."""
    return {
        "id": f"asst_{number}",
        "object": "assistant",
        "created_at": 1_700_000_000 + number,
        "model": "gpt-4o",
        "name": f"number {number}",
        **fields,
    }


def page(*assistants: dict[str, Any], has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": list(assistants), "has_more": has_more}


def exported(runbell: Command) -> list[dict[str, Any]]:
    done = runbell("assistants", "export")
    assert done.code == 0, done
    document = json.loads(done.out)
    assert (document["object"], document["has_more"]) == ("list", False)
    data: list[dict[str, Any]] = document["data"]
    ends = [data[0]["id"], data[-1]["id"]] if data else [None, None]
    assert [document["first_id"], document["last_id"]] == ends
    return data


# Reading a file.


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(page(assistant(1), assistant(2))),
        json.dumps(page(assistant(2), assistant(1)), indent=2),
        json.dumps([assistant(1), assistant(2)]),
        f"{json.dumps(assistant(1))}\n\n{json.dumps(assistant(2))}\n",
        json.dumps(page(assistant(2), has_more=True), indent=1) + json.dumps(page(assistant(1))),
    ],
    ids=["list", "newest first", "array", "JSON lines", "pages one after another"],
)
def test_every_way_to_keep_a_list_reads_the_same(text: str) -> None:
    content = parse(text)
    assert [entry.fields["id"] for entry in content.entries] == ["asst_1", "asst_2"]
    assert content.complete


def test_one_assistant_alone_is_a_file_too() -> None:
    (entry,) = parse(json.dumps(TUTOR, indent=2)).entries
    left_out = {"object", "created_at", "description", "reasoning_effort"}
    assert entry.fields == {name: TUTOR[name] for name in TUTOR if name not in left_out}


def test_assistants_of_one_second_keep_the_order_of_the_list() -> None:
    newest_first = [assistant(9), *({**assistant(n), "created_at": 5} for n in (3, 2, 1))]
    ids = [entry.fields["id"] for entry in parse(json.dumps(newest_first)).entries]
    assert ids == ["asst_1", "asst_2", "asst_3", "asst_9"]


def test_the_line_is_that_of_the_id() -> None:
    text = json.dumps(page(assistant(1), assistant(2)), indent=2)
    lines = text.splitlines()
    assert [lines[entry.line - 1].strip() for entry in parse(text).entries] == [
        '"id": "asst_1",',
        '"id": "asst_2",',
    ]


def test_a_page_that_is_not_the_last_is_not_the_whole() -> None:
    assert not parse(json.dumps(page(assistant(1), has_more=True))).complete


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"id": "asst_1",\n"model": }', "line 2: not JSON"),
        ('{"id": "asst_1", "model":\n', "line 1: not JSON"),
        ('{"id": "asst_1"}\n\n[{"object": "thread"}]', "line 3: an assistant must stand here"),
        ("[1]", "line 1: an assistant must stand here, not 'int'"),
        ("\n3", "line 2: this is neither an assistant nor a list"),
        ('{"object": "list", "data": {}}', "line 1: this is neither"),
        ('{"id": 7}', "line 1: the id of an assistant must be a string"),
        ('{"temperature": NaN}', "line 1: not JSON that can be sent: NaN"),
        ('{"top_p": ' + "1" * 5000 + "}", "line 1: not JSON that can be sent"),
        ("[" * 100_000, "line 1: not JSON that can be sent"),
        ('{"name": "\\ud800"}', "line 1: half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_names_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(text)
    assert str(refused.value).startswith(complaint)
    assert str(refused.value).endswith("nothing was imported")


# Against a service.


def test_an_assistant_moves_in_with_all_it_has(
    runbell: Command, project: str, tmp_path: Path
) -> None:
    file = tmp_path / "assistants.json"
    file.write_text(json.dumps(page(TUTOR)))
    done = runbell("assistants", "import", str(file))
    assert (done.code, done.out) == (0, "1 assistant: 1 imported\n"), done
    (out,) = exported(runbell)
    assert {**out, "created_at": TUTOR["created_at"]} == TUTOR
    # Models read the properties of a function in their order.
    function = out["tools"][1]["function"]
    assert list(function["parameters"]["properties"]) == ["year", "pupil"]


def test_more_than_a_page_goes_out_oldest_first_and_the_same_every_time(
    runbell: Command, project: str, tmp_path: Path
) -> None:
    newest_first = [assistant(number) for number in range(230, 0, -1)]
    done = runbell("assistants", "import", "-", stdin=json.dumps(page(*newest_first)).encode())
    assert done.out == "230 assistants: 230 imported\n"
    assert [each["id"] for each in exported(runbell)] == [f"asst_{n}" for n in range(1, 231)]

    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for file in (first, second):
        assert runbell("assistants", "export", "--output", str(file)).code == 0
    assert first.read_bytes() == second.read_bytes()


def test_an_export_moves_into_another_project_and_out_again_unchanged(
    runbell: Command, project: str, new_project: NewProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\n".join(map(json.dumps, (assistant(1), TUTOR, assistant(2))))
    runbell("assistants", "import", "-", stdin=lines.encode())
    before = runbell("assistants", "export").out
    monkeypatch.setenv("OPENAI_API_KEY", new_project("another"))
    done = runbell("assistants", "import", "-", stdin=before.encode())
    assert done.out == "3 assistants: 3 imported\n"

    def timeless(text: str) -> list[dict[str, Any]]:
        return [{**each, "created_at": 0} for each in json.loads(text)["data"]]

    assert timeless(runbell("assistants", "export").out) == timeless(before)


def test_an_empty_project_exports_an_empty_list_that_can_be_imported(
    runbell: Command, project: str
) -> None:
    done = runbell("assistants", "export")
    assert json.loads(done.out)["data"] == []
    again = runbell("assistants", "import", "-", stdin=done.out.encode())
    assert (again.code, again.out) == (0, "0 assistants: done\n")


def test_a_bad_assistant_does_not_stop_the_others(runbell: Command, project: str) -> None:
    three = [assistant(1), assistant(2, mystery=True), assistant(3)]
    done = runbell("assistants", "import", "-", stdin=json.dumps(three, indent=1).encode())
    assert (done.code, done.out) == (1, "3 assistants: 2 imported, 1 failed\n")
    assert done.err == "asst_2 (line 10): Unknown parameter: 'mystery'.\n"
    assert [each["id"] for each in exported(runbell)] == ["asst_1", "asst_3"]


def test_a_taken_id_fails_is_skipped_or_updated(runbell: Command, project: str) -> None:
    def bring(name: str, *options: str) -> tuple[int, str, str]:
        file = json.dumps(assistant(1, name=name)).encode()
        done = runbell("assistants", "import", "-", *options, stdin=file)
        return done.code, done.out, exported(runbell)[0]["name"]

    assert bring("first") == (0, "1 assistant: 1 imported\n", "first")
    assert bring("second") == (1, "1 assistant: 1 failed\n", "first")
    assert bring("third", "--existing", "skip") == (0, "1 assistant: 1 skipped\n", "first")
    assert bring("fourth", "--existing", "update") == (0, "1 assistant: 1 updated\n", "fourth")


def test_an_update_that_is_refused_counts_as_failed(runbell: Command, project: str) -> None:
    runbell("assistants", "import", "-", stdin=json.dumps(assistant(1)).encode())
    bad = json.dumps(assistant(1, mystery=1)).encode()
    done = runbell("assistants", "import", "-", "--existing", "update", stdin=bad)
    assert (done.code, done.out) == (1, "1 assistant: 1 failed\n")


def test_an_assistant_without_an_id_is_told_its_new_one(runbell: Command, project: str) -> None:
    done = runbell("assistants", "import", "-", stdin=b'{"model": "gpt-4o"}')
    (out,) = exported(runbell)
    assert done.out == f"line 1: has no id; it is {out['id']} now\n1 assistant: 1 imported\n"


def test_a_file_that_cannot_be_read_sends_nothing(runbell: Command, project: str) -> None:
    done = runbell("assistants", "import", "-", stdin=json.dumps(assistant(1)).encode() + b"\n{")
    assert (done.code, done.out) == (1, "")
    assert "line 2: not JSON" in done.err
    latin = runbell("assistants", "import", "-", stdin=b'[\n{"name": "\xe9"}]')
    assert latin.err == "runbell: line 2: not UTF-8 text; nothing was imported\n"
    assert exported(runbell) == []


def test_a_service_that_refuses_everything_ends_the_import_and_says_what_was_done(
    runbell: Command, project: str
) -> None:
    two = json.dumps([assistant(1), assistant(2)]).encode()
    done = runbell("assistants", "import", "-", "--api-key", "sk-wrong", stdin=two)
    assert (done.code, done.out) == (1, "2 assistants: 2 not sent\n")
    assert "refused the key from --api-key" in done.err
    assert "sk-wrong" not in done.err


def test_half_a_list_is_imported_with_a_warning(runbell: Command, project: str) -> None:
    half = json.dumps(page(assistant(1), has_more=True)).encode()
    done = runbell("assistants", "import", "-", stdin=half)
    assert (done.code, done.out) == (0, "1 assistant: 1 imported\n")
    assert "has_more" in done.err


def test_an_output_that_cannot_be_written_is_said(
    runbell: Command, project: str, tmp_path: Path
) -> None:
    done = runbell("assistants", "export", "-o", str(tmp_path / "no" / "such.json"))
    assert done.code == 1
    assert done.err.startswith("runbell: cannot write")
