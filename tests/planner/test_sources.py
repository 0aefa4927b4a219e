"""Where durations come from; whatever makes no sense is said with the line and what to change."""

import sqlite3
import subprocess
import sys

import pytest

from runbell.client.journal import Journal, Stretch
from runbell.errors import ConfigurationError, InvalidSetting, MissingExtra, StorageUnavailable
from runbell.planner import sources
from runbell.planner.sources import from_csv, from_database, from_journal, parse
from runbell.runs.run import RunStatus as S
from runbell.storage import history
from runbell.storage.records import RunConfig
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
        ("duration_s\n0\n2.5\n", {"runs": [0.001, 2.5]}),
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
        ("duration_s\n0\n0\n", "all durations are 0"),
        ("duration_s\n1,5\n", r"line 2: 2 columns, and the first line has 1.*1\.5, not 1,5"),
        ("key,duration_s\na,1\nb,2,5\n", "line 3: 3 columns, and the first line has 2"),
        ("1,5\n2,5\n", "line 1: 2 columns without names.*put a heading"),
        ("key;duration_s\na;1.5\n", "the heading 'key;duration_s' is one column.*not by ;"),
        ("key\tduration_s\na\t3\n", "is one column.*tabs"),
        ("duration_s\n1.5s\n", r"'1.5s' is no number of seconds.*1.5, not 1.5s"),
        ("duration_s\n500\n580\n61\n", "all are whole numbers: are these milliseconds.*--unit ms"),
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


def test_what_is_no_file_is_refused(tmp_path):
    for name in ("missing", "."):
        with pytest.raises(InvalidSetting, match="can't be read"):
            from_csv(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\x81",
        "duration_s\n1.5\n".encode("utf-16"),
        "duration_s\n1.5\n".encode("utf-16-le"),
        "key,duration_s\nMünchen,1.5\n".encode("latin-1"),
    ],
)
def test_what_is_no_text_in_utf_8_is_told_how_to_save_it(tmp_path, content):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(
        InvalidSetting, match=r"runs\.csv can't be read: .* Save it as UTF-8"
    ) as told:
        from_csv(path)
    assert "codec" not in str(told.value)


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
    for text in ("lognormal:p95=25,median=6", " lognormal: median = 6 , p95 = 25 "):
        assert parse(text).source == "lognormal, median 6 s, p95 25 s"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lognormal:", "write lognormal:median=6,p95=25"),
        ("lognormal:median=6", "write lognormal"),
        ("lognormal:median=x,p95=2", "write lognormal"),
        ("lognormal:median=6,5,p95=25", "decimals have a point"),
        ("lognormal:median=6,median=7", "write lognormal"),
        ("lognormal:median=6,p95=25,p99=40", "write lognormal"),
        ("lognormal:median=25,p95=6", "0 < median < p95"),
        ("lognormal:median=-1,p95=6", "0 < median < p95"),
        ("lognormal:median=nan,p95=6", "0 < median < p95"),
        ("lognormal:median=6000,p95=25000", "are these milliseconds"),
        ("lognormal:median=6,p95=1e300", "p95 <= 86400"),
        ("lognorm:median=6,p95=25", "no file and no distribution .* lognormal:median=6,p95=25"),
        ("LogNormal:median=6,p95=25", "no file and no distribution"),
        ("weibull:6,25", "no file and no distribution"),
        ("", "--durations is empty"),
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


def written(path, stretches):
    with Journal(path) as waits:
        for each in stretches:
            waits.note(each)
    return path


def stretch(run, at_days, seconds=1.0, *, first=True, ended=True, key="k"):
    ran = (seconds, seconds if ended else None)
    return Stretch(key, (0.5, 0.5), ran, round(at_days * DAY_MS), f"run_{run}", first)


def test_a_run_that_called_tools_is_one_run(tmp_path):
    stretches = []
    for run in range(101):
        stretches += [stretch(run, run / 10, 2.0), stretch(run, run / 10, 3.0, first=False)]
    stretches += [stretch(101, 10), stretch(101, 10, first=False, ended=False)]
    trace = from_journal(written(tmp_path / "waits.db", stretches))
    # The latest 200 stretches are kept. Of a run whose beginning is gone, nothing is told.
    assert list(trace.kinds["k"]) == [6.0] * 99
    assert (trace.source, trace.left_out) == ("waits.db, 99 runs", 1)
    assert trace.runs_per_month == pytest.approx(3 * 102)


def test_a_busy_waiter_knows_how_many_runs_it_had_though_few_are_kept(tmp_path):
    busy = [stretch(run, run / 1000) for run in range(3000)]
    trace = from_journal(written(tmp_path / "waits.db", busy))
    assert trace.count == 200
    assert trace.runs_per_month == pytest.approx(30 * 1000, rel=0.01)
    # Of what an earlier version wrote down, what is left is counted, and then what comes.
    rows = [("k", None, 2.0, 1, day * DAY_MS) for day in range(11)]
    old = journal(tmp_path / "old.db", rows)
    assert from_journal(old).runs_per_month == pytest.approx(30 * 11 / 10)


def test_a_journal_without_durations_says_so(tmp_path):
    with pytest.raises(InvalidSetting, match=r"no durations were written down in it$"):
        from_journal(journal(tmp_path / "old.db", [], schema=None))
    with pytest.raises(InvalidSetting, match="holds no durations"):
        from_journal(journal(tmp_path / "new.db", []))
    with pytest.raises(InvalidSetting, match="no such file"):
        from_journal(tmp_path / "missing.db")
    with pytest.raises(InvalidSetting, match="is a directory: name the file in it"):
        from_journal(tmp_path)
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
        "asst_1, m": [2.5, 0.25],
        "asst_2, m": [4.0],
    }
    assert (trace.left_out, trace.source) == (3, "runbell.db, 3 runs")
    assert trace.runs_per_month == pytest.approx(6 * 5)
    assert told == pytest.approx([2 / 6, 4 / 6, 1.0])


def test_runs_of_one_assistant_by_two_models_are_two_kinds(tmp_path):
    # A run may name a model of its own; a slow one would blur what is known of the other.
    slow = RunConfig(model="slow", instructions='Never say "model": "quick".')

    async def insert(store):
        await insert_runs(store, new_run("1", status=S.COMPLETED, completed_at_ms=2_000))
        run = new_run("2", status=S.COMPLETED, completed_at_ms=91_000)
        await insert_runs(store, run, config=slow)

    path = tmp_path / "runbell.db"
    tell(lambda: opened(migrated_sqlite(path)), insert)
    assert {kind: list(each) for kind, each in from_database(path).kinds.items()} == {
        "asst_1, m": [1.0],
        "asst_1, slow": [90.0],
    }


def test_many_kinds_are_taken_together_while_they_are_read(csv, monkeypatch):
    monkeypatch.setattr(sources, "GATHERED", 50)
    monkeypatch.setattr(sources, "KEPT", 5)
    rows = "".join(f"often,1.{n:03}\nrare{n},7.{n:03}\n" for n in range(400))
    trace = from_csv(csv("key,duration_s\n" + rows))
    assert trace.count == 800
    assert len(trace.kinds["often"]) == 400
    assert "more than 50 kinds" in trace.remarks[0]


LARGE = """
import resource, sys
from pathlib import Path
from runbell.planner.sources import from_csv
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = used()
trace = from_csv(Path(sys.argv[1]))
trace.sample()
print(len(trace.kinds), used() - before)
"""


def test_as_many_kinds_as_rows_do_not_fill_the_memory(csv):
    path = csv(
        "key,duration_s\n" + "".join(f"k{n},{1 + n % 977 / 97:.3f}\n" for n in range(100_000))
    )
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True
    )
    kinds, mebibytes = map(int, done.stdout.split())
    assert kinds == 40
    assert mebibytes < 50


def test_a_file_that_is_no_database_is_told_by_the_option_that_named_it(tmp_path):
    (tmp_path / "x.db").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="name yours with --from-database"):
        from_database(tmp_path / "x.db")


def test_a_database_without_ended_runs_is_no_history(tmp_path):
    with pytest.raises(InvalidSetting, match=r"runbell\.db, 0 runs holds no durations"):
        from_database(database(tmp_path / "runbell.db", [new_run("1")]))


def test_without_the_packages_of_the_service_they_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "runbell.storage.migrate", None)
    with pytest.raises(MissingExtra, match=r"pip install 'runbell\[serve\]'"):
        from_database(tmp_path / "runbell.db")


def test_a_database_and_a_journal_are_named_as_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = new_run("1", status=S.COMPLETED, completed_at_ms=3_500)
    database(tmp_path / "run bell.db", [ended])
    written(tmp_path / "waits.db", [stretch(run, run) for run in range(3)])
    for where in ("run bell.db", "sqlite:///run%20bell.db", f"sqlite:///{tmp_path}/run bell.db"):
        assert from_database(where).source == "run bell.db, 1 runs"
    for where in ("waits.db", "sqlite:///waits.db", f"sqlite:///{tmp_path}/waits.db"):
        assert from_journal(where).source == "waits.db, 3 runs"


@pytest.mark.parametrize(
    ("read", "where", "error", "complaint"),
    [
        (from_database, "sqlite:///no.db", InvalidSetting, "--from-database no.db: there is no"),
        (from_database, "mysql://u:s3cret@h/d", InvalidSetting, r"mysql://\*\*\*@h/d can"),
        (from_database, "sqlite:/runbell.db", InvalidSetting, "or sqlite:////var/lib/runbell.db"),
        (from_database, "sqlite:///x.db?mode=ro", InvalidSetting, "options behind the file"),
        (from_database, "postgresql:", InvalidSetting, "postgresql://USER@HOST/DATABASE or"),
        (from_database, "postgresql://u:s3cret@h:x/d", ConfigurationError, "URL cannot be read"),
        (from_database, "postgresql://u:s3/cret@h/d", ConfigurationError, "URL cannot be read"),
        (from_database, "postgresql://u:s3cret@127.0.0.1:1/d", StorageUnavailable, "cannot be"),
        (from_journal, "postgresql://u:s3cret@h/d", InvalidSetting, r"\*\*\*@h/d can't be read"),
    ],
)  # fmt: skip
def test_other_places_are_refused_without_a_password(read, where, error, complaint):
    with pytest.raises(error, match=complaint) as told:
        read(where)
    assert "s3" not in str(told.value)


def test_without_the_driver_of_postgresql_it_is_named(monkeypatch):
    for name in [each for each in sys.modules if each.startswith("runbell.storage.postgresql")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'runbell\[postgresql\]'"):
        from_database("postgresql://x@127.0.0.1:1/x")
