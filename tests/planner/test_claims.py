"""The claims that travel are computed, and the documentation says what comes out."""

import re
from pathlib import Path

import pytest

from runbell.planner import Trace, Workload, plan, playing, tables
from runbell.planner.claims import claims, markdown

PAGE = Path(__file__).parents[2] / "docs" / "polling-or-webhooks.md"


@pytest.fixture(scope="module")
def computed():
    return claims()


def test_the_documentation_has_what_is_computed(computed):
    table = PAGE.read_text().partition("## Claims that travel")[2].partition("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| ")][1:] == markdown(computed)


def test_the_example_of_the_documentation_is_what_comes_out():
    found = plan(Workload(Trace.lognormal(6, 25), 100_000))
    section = PAGE.read_text().partition("## An example")[2].partition("\n## ")[0]
    heading, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    whole = tables.policies(found)
    kept = [whole[0].index(name) for name in heading.strip("| ").split(" | ")]
    assert rows == ["| " + " | ".join(row[place] for place in kept) + " |" for row in whole[1:]]
    assert f"> {found.recommendation}" in section


def test_other_runs_give_other_numbers(monkeypatch):
    monkeypatch.setattr(playing, "SAMPLE", 5)
    slow = {each.says: each.computed for each in claims(latency=0.4)}
    assert slow["Polling every 100 ms is 10 calls a second"].endswith("= 2.0 a second")


def test_the_claims_that_are_arithmetic_come_out_right(computed):
    found = {each.says: each.computed for each in computed}
    assert found["Polling every 100 ms is 10 calls a second"].endswith("= 4.0 a second")
    assert found["10 million calls at $0.00015 are $1.50"].endswith("= $1,500")
    says = "Polling every 2 to 3 s instead of 100 ms saves 80 % of the calls"
    saved = re.findall(r"(\d+) %", found[says])
    assert all(80 <= int(each) <= 90 for each in saved)
