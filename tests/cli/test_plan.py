"""`runbell plan`: tables for people, JSON for programs, and clear words for what makes no sense."""

import json

import pytest

from runbell.client.journal import Journal, Stretch
from runbell.errors import InvalidSetting
from runbell.planner import frontier as frontiers
from runbell.planner import playing
from runbell.planner import report as reporting
from runbell.planner.words import amount
from tests.cli.test_main import WITHOUT, python

TRACE = "key,duration_s\n" + "".join(f"a,{1 + n % 7}.5\nb,{10 + n % 11}\n" for n in range(60))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(playing, "SAMPLE", 10)
    monkeypatch.setattr(playing, "LOST", 3)
    monkeypatch.setattr(frontiers, "MOMENTS", 300)
    monkeypatch.setattr(frontiers, "PRICES", (0.05, 0.5, 2.0))


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(TRACE)
    return str(path)


def test_a_plan_for_people(runbell, trace):
    done = runbell("plan", "--durations", trace, "--runs-per-month", "100000")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("runs       100,000 a month")
    heading = next(line for line in lines if line.startswith("policy"))
    for column in ("calls/run", "calls/month", "quota at peak", "spent in", "$/month", "p99 s"):
        assert column in heading
    assert sum("429s" in line for line in lines) == 1
    assert lines[-1].startswith("Poll with Foresight: it takes ")
    assert "concurrent runs at peak = runs a month x peak x mean seconds" in done.out


def test_a_plan_for_programs_and_a_report(runbell, trace, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "CHARTS", reporting.CHARTS[:1])
    report = tmp_path / "plan.html"
    done = runbell(
        "plan", "--durations", trace, "--runs-per-month", "1e6", "--rpm", "600", "--peak", "2",
        "--price-per-call", "0.001", "--webhook-monthly", "20", "--latency", "0.1",
        "--webhook-loss", "0.01", "--json", "--report", str(report),
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    given = {"rpm": 600, "peak": 2, "price_per_call": 0.001, "webhook_monthly": 20}
    assert found["workload"].items() >= {**given, "latency": 0.1, "webhook_loss": 0.01}.items()
    assert found["recommended"] == "webhook with backstop"
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_no_quota_is_said_with_0(runbell, trace):
    done = runbell("plan", "--durations", trace, "--runs-per-month", "10", "--rpm", "0", "--json")
    assert json.loads(done.out)["workload"]["rpm"] is None


def test_a_waiters_journal_says_how_many_runs_there_are(runbell, tmp_path):
    path = tmp_path / "waits.db"
    with Journal(path) as waits:
        for day in range(31):
            ran = 3.0 + day % 4
            waits.note(Stretch("k", (0.1, 0.1), (ran, ran), 86_400_000 * day, f"run_{day}"))
    found = json.loads(runbell("plan", "--from-journal", str(path), "--json").out)
    assert found["workload"]["runs_per_month"] == pytest.approx(31)
    assert found["workload"]["durations"] == "waits.db, 31 runs"


@pytest.mark.parametrize("thousand", ["1000", "1,000", "1_000", "1k", "1 K", "0.001M", "1e3"])
def test_numbers_are_read_as_people_write_them(thousand):
    assert amount("--runs-per-month", thousand) == 1000


@pytest.mark.parametrize("either", ["1.000", "1,5", "0,150", "1.000.000", "1.234,5", "1,5M"])
def test_a_number_that_may_be_either_of_two_is_refused(either):
    with pytest.raises(InvalidSetting, match="may be either of two numbers: write thousands"):
        amount("--runs-per-month", either)


def test_durations_come_by_standard_input(runbell):
    options = ("--runs-per-month", "100,000", "--rpm", "1k", "--webhook-monthly", "1,000.50")
    done = runbell("plan", "--durations", "-", *options, "--json", stdin=TRACE.encode("utf-8-sig"))
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)["workload"]
    given = {"runs_per_month": 100_000, "rpm": 1000, "webhook_monthly": 1000.5}
    assert found.items() >= {**given, "durations": "standard input", "durations_count": 120}.items()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say how long your runs take, in one way"),
        (["--durations", "x.csv", "--from-journal", "y.db"], "say how long your runs take, in one"),
        (["--durations", "no/such.csv"], "--durations no/such.csv can't be read"),
        (["--durations", "lognormal:median=6,p95=25"], "runs_per_month (--runs-per-month) is"),
        (["--durations", ""], "--durations is empty"),
        (["--durations", "x.csv", "--report", ""], "--report names no file"),
        (["--durations", "x.csv", "--png", "x.svg"], "--png x.svg: a PNG is written"),
        (["--durations", "x.csv", "--png", "x.html"], "--png x.html: a PNG is written"),
        (["--durations", "x.csv", "--report", "x.png"], "--report x.png: a page is written"),
        (["--from-journal", "no/such.db"], "--from-journal no/such.db: there is no such file"),
        (["--from-journal", "x", "--unit", "ms"], "--unit is for --durations"),
        (["--runs-per-month", "1.000"], "--runs-per-month is '1.000', which may be either"),
        (["--rpm", "many"], "--rpm is 'many': a number is needed, as 100000, 100,000, 100k"),
        (["--from-database", "mysql://x@h/x"], "--from-database mysql://***@h/x can't be read"),
        (["--from-database", "no/such.db"], "--from-database no/such.db: there is no such file"),
        (
            ["--durations", "lognormal:median=6,p95=25", "--runs-per-month", "-5"],
            "runs_per_month is -5: it has to be 0.01 to 1,000,000,000,000 (--runs-per-month)",
        ),
        (
            ["--durations", "lognormal:median=6000,p95=25000", "--runs-per-month", "5"],
            "lognormal, median 6000 s, p95 25000 s: half of the runs take longer than",
        ),
    ],
)
def test_what_makes_no_sense_ends_with_2(runbell, arguments, sentence):
    done = runbell("plan", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"runbell: {sentence}")
    assert done.err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_said(runbell, trace, tmp_path):
    to = str(tmp_path / "no" / "plan.html")
    done = runbell("plan", "--durations", trace, "--runs-per-month", "10", "--report", to)
    assert (done.code, "the report can't be written" in done.err) == (1, True)


def test_a_missing_package_names_the_extra():
    done = python("-c", WITHOUT, "numpy", "plan", "--durations", "runs.csv")
    assert done.returncode == 1
    assert "pip install 'runbell[planner]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
