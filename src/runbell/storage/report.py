"""What a check of the database finds, and how it reads tables of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from runbell.storage.statements import Statement
from runbell.storage.store import Transaction

__all__ = ["Found", "Named", "Report", "rows"]

PAGE = 500
"""Rows that are read at a time."""

MAX_EXAMPLES = 20
"""Rows that break one rule and are listed; the others are counted."""

Named = dict[str, Any]
"""A row, by the names of its columns."""


@dataclass(slots=True)
class Found:
    """What breaks one rule: how often, and the first few: what breaks it, and how."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What a check has found.

    Attributes:
        problems: by the rule that is broken; empty where everything is in order.
        looked_at: how many rows of each table.
    """

    problems: dict[str, Found] = field(default_factory=dict)
    looked_at: dict[str, int] = field(default_factory=dict)

    def add(self, rule: str, subject: str, detail: str = "") -> None:
        """Something breaks a rule.

        Args:
            subject: the id of the run, or whatever else it is; all that is wrong with one subject
                is shown together.
            detail: what else there is to say.
        """
        found = self.problems.setdefault(rule, Found())
        found.count += 1
        if len(found.examples) < MAX_EXAMPLES:
            found.examples.append((subject, detail))

    def by_subject(self) -> dict[str, list[tuple[str, str]]]:
        """The examples by what breaks a rule: each rule, and its detail."""
        found: dict[str, list[tuple[str, str]]] = {}
        for rule, each in self.problems.items():
            for subject, detail in each.examples:
                found.setdefault(subject, []).append((rule, detail))
        return found


async def rows(
    tx: Transaction, report: Report, table: str, statement: Statement, **behind: Any
) -> AsyncIterator[Named]:
    """All rows of a statement, a page at a time.

    Args:
        table: what the rows are, for the count of those that were looked at.
        behind: the columns that the statement is sorted by, with values before the first row's.
    """
    names = [column.name for column in statement.clause.selected_columns]  # type: ignore[attr-defined] # a Select
    report.looked_at[table] = 0
    while True:
        page = await tx.fetch_all(statement, {**behind, "limit": PAGE})
        for values in page:
            yield dict(zip(names, values, strict=True))
        report.looked_at[table] += len(page)
        if len(page) < PAGE:
            return
        last = dict(zip(names, page[-1], strict=True))
        behind = {name: last[name] for name in behind}
