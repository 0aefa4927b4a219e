"""`kill -9` at every named fault point, under load: nothing is lost, nothing doubles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import runbell
from runbell import faults
from runbell.testing.faults import Kill
from tests.crash.crashing import crowded, die_at

HITS = (1, 30)
"""The first hit is often one of the start; the later one comes in the middle of the load."""

FEW = {"executor.cancelling": (1, 4)}
"""What clients make happen less often."""


# The points of a receiver are for its own tests: no service comes by.
@pytest.mark.parametrize("point", [p for p in faults.POINTS if not p.startswith("receiver.")])
def test_a_service_that_is_killed_goes_on_where_it_was(point: str, tmp_path: Path) -> None:
    """Killed there again and again on one database, then started for good: every run that a client
    knows of is there and ends as it should; each has its events 1 to n by the table of transitions
    and one end; answers, outputs and messages are there once; lines are kept; threads are free."""
    with crowded(tmp_path) as (served, crowd):
        for hit in FEW.get(point, HITS):
            die_at(served, crowd, Kill(point, hit))


def test_every_point_has_its_place_and_every_place_its_name() -> None:
    """`POINTS` lists exactly the points at which code calls `faults.hit`."""
    named: set[str] = set()
    folder = Path(runbell.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.hit":
                strings = [each for each in ast.walk(node) if isinstance(each, ast.Constant)]
                assert strings, f"{file}: the name of a point has to stand where it is hit"
                named |= {each.value for each in strings if isinstance(each.value, str)}
    assert named == set(faults.POINTS)


def test_no_setting_arms_a_point() -> None:
    """Points are armed by the toolbox alone: production code never does, for no variable."""
    folder = Path(runbell.__file__).parent
    for file in folder.rglob("*.py"):
        if "testing" in file.relative_to(folder).parts or file.name == "faults.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "faults":
                assert node.attr == "hit", f"{file}:{node.lineno}"
