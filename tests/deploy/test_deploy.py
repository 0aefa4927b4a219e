"""Each command line, variable, port and number in `deploy/` is one that Runbell has."""

from __future__ import annotations

import configparser
import http.server
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from runbell.service.jobs import JobKind, pgqueuer
from runbell.service.logs import PROBES
from runbell.service.metrics import Backlog, Due, Metrics
from runbell.service.settings import Settings, environment_name
from runbell.service.upstreams import FIRST_ANSWER
from runbell.service.wire.preferences import MAX_WAIT_SECONDS
from runbell.storage import postgresql
from runbell.storage.private_postgresql import BINARIES, PACKAGE
from tests.deploy.commands import parse

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
SETTINGS = {environment_name(item.name): item for item in fields(Settings)}
PORT = Settings().port


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


COMPOSE = load("compose.yaml")
(SCRAPED,) = load("prometheus/prometheus.yml")["scrape_configs"]
(GROUP,) = load("prometheus/runbell.rules.yml")["groups"]
RULES = GROUP["rules"]
OURS = {name: each for name, each in COMPOSE["services"].items() if "runbell" in each["image"]}


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|min)?", text).groups()
    return int(number) * {"ms": 0.001, "m": 60, "min": 60}.get(unit, 1)


STOPPING = Settings().shutdown_grace + pgqueuer.LAST_SECONDS + postgresql.WAIT_SECONDS
"""The longest end of a process: its requests and calls, PgQueuer's last words, the connections."""


# Compose.


@pytest.mark.parametrize("name", OURS)
def test_a_container_starts_what_there_is(name: str) -> None:
    """Its command is one of the command line's, and its variables are settings that it reads."""
    service = OURS[name]
    assert parse(service["command"]) in ("serve", "worker", "migrate")
    environment = {key: str(value) for key, value in service["environment"].items()}
    for variable in environment:
        assert variable.removesuffix("_FILE") in SETTINGS
    secrets = {value for value in environment.values() if value.startswith("/run/secrets/")}
    assert secrets == {f"/run/secrets/{each}" for each in service["secrets"]}
    assert seconds(service["stop_grace_period"]) > 2 * STOPPING
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_there_are_two_of_each() -> None:
    commands = [service["command"] for service in OURS.values()]
    assert sorted(commands) == [["migrate"], ["serve"], ["serve"], ["worker"], ["worker"]]


def test_whatever_stays_is_asked_for_its_health() -> None:
    """The image's health check asks the port that `serve` has by itself, and workers as theirs."""
    for service in OURS.values():
        assert (service["command"] == ["migrate"]) == ("healthcheck" in service)
        if service["command"] == ["worker"]:
            assert service["environment"]["RUNBELL_METRICS_PORT"] == Settings().port


def test_no_secret_has_a_value_of_its_own() -> None:
    """Each is a file, which `secrets.sh` makes and Git does not see; passwords stand nowhere."""
    made = re.findall(r"^make (\w+)", (DEPLOY / "secrets.sh").read_text(), re.MULTILINE)
    assert {name: {"file": f"secrets/{name}"} for name in made} == COMPOSE["secrets"]
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|DATABASE", name):
                assert name.endswith("_FILE")
                assert value.startswith("/run/secrets/")


def test_the_secrets_that_are_made_can_be_used(tmp_path: Path) -> None:
    """A second start leaves them as they are; nobody else gets into their folder."""
    script = tmp_path / "secrets.sh"
    script.write_text((DEPLOY / "secrets.sh").read_text())
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True, capture_output=True)
        made = {each.name: each.read_text() for each in (tmp_path / "secrets").iterdir()}
        assert made == locals().get("before", made)
        before = made
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    settings = Settings.load(
        environ={
            environment_name(setting) + "_FILE": f"{tmp_path}/secrets/{name}"
            for setting, name in (
                ("database", "database_url"),
                ("encryption_key", "encryption_key"),
                ("api_key", "api_key"),
            )
        }
    )
    password = made["database_password"].strip()
    assert len(password) == 48
    assert settings.database == f"postgresql://runbell:{password}@postgresql/runbell"
    database = COMPOSE["services"]["postgresql"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("runbell", "runbell")


def test_everything_speaks_to_the_port_that_is_listened_on() -> None:
    balancer = (DEPLOY / "haproxy.cfg").read_text()
    servers = dict(re.findall(r"^ +server (\S+) (\S+)$", balancer, re.MULTILINE))
    serving = [name for name, each in OURS.items() if each["command"] == ["serve"]]
    assert servers == {name: f"{name}:{PORT}" for name in serving}
    working = [name for name, each in OURS.items() if each["command"] == ["worker"]]
    scraped = [f"{name}:{PORT}" for name in (*serving, *working)]
    assert SCRAPED["static_configs"] == [{"targets": scraped}]
    assert "metrics_path" not in SCRAPED, "/metrics is what Prometheus asks for by itself"
    assert f"EXPOSE {PORT}\n" in (DEPLOY / "Dockerfile").read_text()
    assert COMPOSE["services"]["balancer"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert f"bind :{PORT}\n" in balancer


def test_the_balancer_waits_as_long_as_anybody_may_have_to() -> None:
    balancer = (DEPLOY / "haproxy.cfg").read_text()
    asked = re.findall(r"uri (\S+)", balancer) + re.findall(r"path (\S+) }", balancer)
    assert set(asked) <= PROBES
    for side in ("client", "server"):
        timeout = seconds(re.search(rf"timeout {side} (\S+)", balancer)[1])
        assert timeout > max(MAX_WAIT_SECONDS, FIRST_ANSWER)


# The image.


def dockerfile() -> Iterator[list[str]]:
    text = re.sub(r"\\\n|^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in text.splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield [instruction, rest.strip()]


def test_the_image_is_built_from_what_is_there() -> None:
    """What it copies exists, and `.dockerignore` lets it through."""
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [
        source
        for instruction, rest in dockerfile()
        if instruction == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / each).exists() for each in copied)
    project = (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r"\[([a-z,]+)\]", (DEPLOY / "Dockerfile").read_text())
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))


def test_the_image_runs_what_there_is_as_nobody() -> None:
    """In exec form: a shell would keep SIGTERM to itself."""
    last = dict(dockerfile())
    assert parse(json.loads(last["CMD"])) == "serve"
    assert json.loads(last["ENTRYPOINT"]) == ["runbell"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    variables = re.findall(r"(RUNBELL_\w+)", last["ENV"])
    assert variables
    assert set(variables) <= set(SETTINGS)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_what_the_service_answers(status: int, code: int) -> None:
    """The command of the image, run here: at the port of the settings, without a proxy."""
    asked = []

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (check,) = [rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK"]
    python, *words = json.loads(check[check.index("[") :])
    assert python == "python"
    with http.server.HTTPServer(("127.0.0.1", 0), Door) as door:
        answering = threading.Thread(target=door.handle_request)
        answering.start()
        environment = {
            **os.environ,
            "RUNBELL_PORT": str(door.server_port),
            "http_proxy": "http://127.0.0.1:9",
        }
        done = subprocess.run([sys.executable, *words], env=environment, check=False)
        answering.join()
    assert done.returncode == code
    assert len(asked) == 1
    assert asked[0] in PROBES


# Units.

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_what_there_is(path: Path) -> None:
    """What `systemd-analyze verify` cannot know; it reads the same files in `make check`."""
    service = unit(path)["Service"]
    program, *words = shlex.split(service["ExecStart"].replace("%i", "8101"))
    assert Path(program).name == "runbell"
    assert parse(words) in path.name.replace("runbell@", "serve")
    text = path.read_text()
    loaded = re.findall(r"^LoadCredential=(\w+):/etc/runbell/\1$", text, re.MULTILINE)
    given = re.findall(r"^Environment=(\w+)_FILE=%d/(\w+)$", text, re.MULTILINE)
    assert [(environment_name(name), name) for name in loaded] == given
    assert set(dict(given)) <= set(SETTINGS)
    assert loaded
    for protected in ("DynamicUser", "NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateTmp"):
        assert service[protected] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_the_units_are_protected_alike() -> None:
    """Whoever tightens one tightens all."""
    tails = [
        path.read_text().partition("# Nothing that")[2].partition("[Install]")[0] for path in UNITS
    ]
    assert len({tail.strip() for tail in tails}) == 1
    assert tails[0]


@pytest.mark.parametrize("name", ["runbell@.service", "runbell-worker@.service"])
def test_a_unit_comes_back_and_is_given_the_time_to_end(name: str) -> None:
    """However long its database is away, at the start too."""
    sections = unit(DEPLOY / "systemd" / name)
    assert "Requires" not in sections["Unit"]
    assert sections["Unit"]["StartLimitIntervalSec"] == "0"
    service = sections["Service"]
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"
    assert seconds(service["TimeoutStopSec"]) > 2 * STOPPING


# PostgreSQL.


def test_postgresql_knows_its_settings() -> None:
    """Read by a server. Twice four processes have room, as in an upgrade, and people too."""
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None
    server = Path(package.submodule_search_locations[0]) / BINARIES / "postgres"
    with tempfile.TemporaryDirectory() as folder:
        # The server refuses to be root, and nobody else gets into a test's own folder.
        Path(folder).chmod(0o755)
        config = Path(folder, "postgresql.conf")
        config.write_text((DEPLOY / "postgresql.conf").read_text())
        asked = subprocess.run(
            [str(server), "-C", "max_connections", f"--config-file={config}", "-D", folder],
            capture_output=True,
            text=True,
            check=False,
            user="nobody" if os.geteuid() == 0 else None,
            cwd="/",
        )
    assert asked.returncode == 0, asked.stderr
    of_each = postgresql.CONNECTIONS + postgresql.ENGINES + len(["listens", "migrates"])
    assert int(asked.stdout) >= 2 * 4 * of_each


# Alerts.


def numbers() -> dict[str, set[str]]:
    """Each series of the page, and what its labels can say, as `label=value`."""
    metrics = Metrics()
    metrics.answered("GET", "/v1/models", 200, 0.1)
    metrics.model_called("models:80", "failed", 0.1)
    metrics.model_tried_again("models:80")
    due = {kind: Due(0, 0.0) for kind in JobKind}
    held = dict.fromkeys(map(str, JobKind), 0)
    page = metrics.page("", Backlog({"queued": 0}, due, held=held)).body.decode()
    found: dict[str, set[str]] = {"up": set()}
    if not sys.platform.startswith("linux"):
        # Only there does a process know these of itself.
        found |= {"process_open_fds": set(), "process_max_fds": set()}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = {f"{label}={value}" for label, value in sample.labels.items()}
            found.setdefault(sample.name, set()).update(labels)
    return found


RULES = [
    rule for group in load("prometheus/runbell.rules.yml")["groups"] for rule in group["rules"]
]


def selectors(node: Any) -> Iterator[Any]:
    """The series that an expression asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (part := getattr(node, name, None)) is not None:
            yield from selectors(part)
    for part in getattr(getattr(node, "args", None), "args", None) or getattr(node, "args", ()):
        yield from selectors(part)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_numbers_that_there_are(rule: dict[str, Any]) -> None:
    """With labels that they have, and values that those can take."""
    there = numbers()
    asked = list(selectors(promql_parser.parse(rule["expr"])))
    assert asked
    for selector in asked:
        assert selector.name in there
        labels = {each.partition("=")[0] for each in there[selector.name]}
        for matcher in selector.matchers.matchers:
            if matcher.name == "job":
                assert (
                    matcher.value
                    == load("prometheus/prometheus.yml")["scrape_configs"][0]["job_name"]
                )
                continue
            assert matcher.name in labels
            if matcher.name in ("kind", "type"):
                for value in alternatives(matcher.value):
                    assert f"{matcher.name}={value}" in there[selector.name]


def alternatives(pattern: str) -> list[str]:
    """The values that a pattern of ours names: `a|b`, or `a.(b|c)`."""
    head, bracket, tail = pattern.partition("(")
    values = (tail.rstrip(")") if bracket else head).split("|")
    return [f"{head if bracket else ''}{value}" for value in values]


def test_every_alert_is_explained() -> None:
    """What to do stands where one looks, by the alert's name and with its limit."""
    page = (ROOT / "docs" / "operations.md").read_text()
    explained = re.findall(r"^\| `(Runbell\w+)`", page, re.MULTILINE)
    assert explained == [rule["alert"] for rule in RULES]
    assert load("prometheus/prometheus.yml")["rule_files"] == ["runbell.rules.yml"]
