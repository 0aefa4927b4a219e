"""Where durations come from; whatever makes no sense is said with the line and what to change."""

import sqlite3
import sys

import pytest

from runbell.errors import ConfigurationError, InvalidSetting, MissingExtra
from runbell.planner import sources
from runbell.planner.sources import from_csv, from_database, from_journal, parse
from runbell.runs.run import RunStatus as S
from runbell.storage import history
from runbell.testing.databases import migrated_sqlite, opened
from runbell.testing.storage_contract.runs import insert_runs, new_run
from runbell.testing.storage_contract.stories import tell


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("key,duration_s\na,1.5\nb,2\na,3\n", {"a": [1.5, 3], "b": [2]}),
        ("\ufeffduration_s\n1\n2\n", {"runs": [1, 2]}),
        ("1\n2.5\n\n3\n", {"runs": [1, 2.5, 3]}),
        ("a,1\nb,2\n", {"a": [1], "b": [2]}),
        ("id,Seconds,kind\nx,4,k\n", {"k": [4]}),
        ("whatever\n7\n", {"runs": [7]}),
        ("duration_s\n0\n", {"runs": [0.001]}),
    ],
)
def test_columns_are_found(csv, text, kinds):
    found = from_csv(csv(text)).kinds
    assert {kind: list(values) for kind, values in found.items()} == kinds


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no durations"),
        ("duration_s\n", "holds no durations"),
        ("duration_s\n1\nabc\n", "line 3: 'abc' is no number of seconds"),
        ("duration_s\n-2\n", "line 2: -2 is no duration: it is below 0"),
        ("duration_s\nnan\n", "line 2: 'nan' is no number"),
        ("duration_s\ninf\n", "inf is no duration"),
        ("key,duration_s\na\n", "line 2: 1 columns, 2 are needed"),
        ("duration_ms\n1500\n", "the column duration_ms holds milliseconds.*--unit ms"),
        ("from,to\n1,2x\n", "none of the columns from, to holds durations"),
        ("duration_s\n5505\n13563\n6100\n", "are these milliseconds.*--unit ms, or --unit s"),
        ("-1\n", "line 1: -1 is no duration"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused(csv, text, complaint):
    with pytest.raises(InvalidSetting, match=complaint):
        from_csv(csv(text))


def test_the_unit_can_be_said(csv):
    path = csv("duration_ms\n1500\n")
    assert list(from_csv(path, "ms").kinds["runs"]) == [1.5]
    assert list(from_csv(csv("duration_s\n3600\n"), "s").kinds["runs"]) == [3600]


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("binary", "missing", "."):
        with pytest.raises(InvalidSetting, match="can't be read"):
            from_csv(tmp_path / name)


def test_reading_tells_its_progress(csv, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_A_STEP", 1000)
    told = []
    from_csv(csv("duration_s\n" + "1.25\n" * 20_000), None, told.append)
    assert len(told) > 10
    assert told == sorted(told)
    assert 0 < told[0] < 0.5
    assert told[-1] == 1.0


def test_a_distribution_is_parsed():
    assert parse("lognormal:median=6,p95=25").median() == pytest.approx(6, rel=1e-3)
    assert parse("lognormal:median=6000,p95=25000", "ms").median() == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lognormal:", "write lognormal:median=6,p95=25"),
        ("lognormal:median=6", "write lognormal"),
        ("lognormal:median=x,p95=2", "write lognormal"),
        ("lognormal:median=25,p95=6", "0 < median < p95"),
        ("lognormal:median=-1,p95=6", "0 < median < p95"),
        ("lognormal:median=nan,p95=6", "0 < median < p95"),
        ("lognormal:median=6000,p95=25000", "are these milliseconds"),
    ],
)
def test_a_distribution_that_is_none_is_refused(text, complaint):
    with pytest.raises(InvalidSetting, match=complaint):
        parse(text)


DAY_MS = 86_400_000

SCHEMA = """create table durations (
  id integer primary key, key text not null, queue_seconds real, run_seconds real not null,
  ended integer not null, at_ms integer not null)"""
INSERT = "insert into durations (key, queue_seconds, run_seconds, ended, at_ms) values (?,?,?,?,?)"


def journal(path, rows, schema=SCHEMA):
    with sqlite3.connect(path) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table tool_calls (run_id text)")
        if schema:
            database.execute(schema)
            database.executemany(INSERT, rows)
    database.close()
    return path


def test_a_journal_tells_durations_and_how_many_runs_there_are(tmp_path):
    rows = [
        ('["asst","gpt",[]]', 0.5, 2.0, 1, 0),
        ('["asst","gpt",[]]', None, 3.0, 1, DAY_MS),
        ('["other","gpt",[]]', 0.0, 9.0, 0, 5 * DAY_MS),
        ('["other","gpt",[]]', 1.0, 4.0, 1, 10 * DAY_MS),
    ]
    trace = from_journal(journal(tmp_path / "waits.db", rows))
    assert {kind: list(each) for kind, each in trace.kinds.items()} == {
        '["asst","gpt",[]]': [2.5, 3.0],
        '["other","gpt",[]]': [5.0],
    }
    assert trace.left_out == 1
    assert trace.runs_per_month == pytest.approx(4 * 3)


def test_a_kind_whose_early_runs_were_removed_counts_by_its_own_span(tmp_path):
    rare = [("rare", None, 5.0, 1, day * DAY_MS) for day in range(11)]
    often = [("often", None, 1.0, 1, 8 * DAY_MS + n * DAY_MS // 100) for n in range(200)]
    trace = from_journal(journal(tmp_path / "waits.db", [*rare, *often]))
    assert trace.runs_per_month == pytest.approx(30 * (11 / 10 + 200 / 2))
    # 200 within hours do not tell how many there are a month.
    often = [("often", None, 1.0, 1, 10 * DAY_MS - 60_000 * n) for n in range(200)]
    assert from_journal(journal(tmp_path / "busy.db", [*rare, *often])).runs_per_month is None


def test_a_journal_without_durations_says_so(tmp_path):
    with pytest.raises(InvalidSetting, match=r"no durations were written down in it$"):
        from_journal(journal(tmp_path / "old.db", [], schema=None))
    with pytest.raises(InvalidSetting, match="holds no durations"):
        from_journal(journal(tmp_path / "new.db", []))
    with pytest.raises(InvalidSetting, match="no such file"):
        from_journal(tmp_path / "missing.db")
    (tmp_path / "text").write_text("this is no database, but it is long enough to be taken for one")
    with pytest.raises(ConfigurationError, match="can't be read"):
        from_journal(tmp_path / "text")


def database(path, runs):
    tell(lambda: opened(migrated_sqlite(path)), lambda store: insert_runs(store, *runs))
    return path


def test_a_database_tells_what_took_how_long(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 2)
    runs = [
        new_run("1", status=S.COMPLETED, completed_at_ms=3_500),
        new_run("2", status=S.FAILED, failed_at_ms=5_000, assistant_id="asst_2"),
        new_run("3", status=S.INCOMPLETE, incomplete_at_ms=1_250),
        new_run("4", status=S.CANCELLED, cancelled_at_ms=2_000),
        new_run("5", status=S.EXPIRED, expired_at_ms=9_000),
        new_run("6", status=S.IN_PROGRESS, created_at_ms=1_000 + 6 * DAY_MS),
    ]
    told = []
    trace = from_database(database(tmp_path / "runbell.db", runs), told.append)
    assert {kind: list(each) for kind, each in trace.kinds.items()} == {
        "asst_1": [2.5, 0.25],
        "asst_2": [4.0],
    }
    assert (trace.left_out, trace.source) == (3, "runbell.db, 3 runs")
    assert trace.runs_per_month == pytest.approx(6 * 5)
    assert told == pytest.approx([2 / 6, 4 / 6, 1.0])


def test_a_database_without_ended_runs_is_no_history(tmp_path):
    with pytest.raises(InvalidSetting, match=r"runbell\.db, 0 runs holds no durations"):
        from_database(database(tmp_path / "runbell.db", [new_run("1")]))


def test_without_the_packages_of_the_service_they_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "runbell.storage.migrate", None)
    with pytest.raises(MissingExtra, match=r"pip install 'runbell\[serve\]'"):
        from_database(tmp_path / "runbell.db")
