"""Hold what continuous integration cannot run against those who know its format.

What needs more than a format, such as that each command line is one of Runbell's and each number in
an alert is on its page, is in `tests/deploy`.

A tool that is not on this machine is said to be missing, on a line of its own. Those that `make
setup` installs may not be missing.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
INSTALLED = "/opt/runbell/bin/runbell"
"""Where the units have the command; here it is in the environment of the sources."""

SCHEMA = ["--quiet", "--builtin-schema", "vendor.compose-spec"]

MOST_EXPOSED = 20
"""Of 100: what `systemd-analyze security` may find open in a unit. Network and database are 14."""

INSTANCES = {
    "runbell@.service": "runbell@8101.service",
    "runbell-worker@.service": "runbell-worker@1.service",
    "runbell-migrate.service": "runbell-migrate.service",
}


def main() -> int:
    """Check everything; 1 where something is wrong."""
    wrong = [
        check("compose.yaml", ["check-jsonschema", *SCHEMA, "compose.yaml"], ours=True),
        check("Dockerfile", ["hadolint", "Dockerfile"], ours=has_hadolint()),
        check("secrets.sh", ["sh", "-n", "secrets.sh"]),
        *units(),
        check("runbell.rules.yml", ["promtool", "check", "rules", "prometheus/runbell.rules.yml"]),
        check("haproxy.cfg", ["haproxy", "-c", "-q", "-f", "haproxy.cfg"]),
    ]
    return int(any(wrong))


def has_hadolint() -> bool:
    """There is a wheel of it, so that `make setup` has installed it: see pyproject.toml."""
    return sys.platform == "darwin" or platform.machine() == "x86_64"


def units() -> list[bool]:
    """Check the systemd units, with the command at the place where it is here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for template, instance in INSTANCES.items():
            text = (HERE / "systemd" / template).read_text()
            (folder / instance).write_text(text.replace(INSTALLED, str(BIN / "runbell")))
        paths = [str(folder / instance) for instance in INSTANCES.values()]
        exposure = ["security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED}"]
        return [
            check("systemd units", ["systemd-analyze", "verify", "--man=no", *paths]),
            check("systemd units' hardening", ["systemd-analyze", *exposure, *paths], quiet=True),
        ]


def check(what: str, command: list[str], *, ours: bool = False, quiet: bool = False) -> bool:
    """Run a check and say what came of it; whether something is wrong.

    Args:
        ours: it comes with `make setup`, so that it is wrong if it is missing.
        quiet: what it writes matters only where it fails.
    """
    tool = shutil.which(str(BIN / command[0])) or shutil.which(command[0])
    if tool is None:
        print(f"deploy: {what}: {'' if ours else 'NOT CHECKED, '}{command[0]} is not installed")
        return ours
    done = subprocess.run(
        [tool, *command[1:]],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    # `systemd-analyze verify` ends with 0 also where it has something to say.
    says = "" if quiet and done.returncode == 0 else done.stdout.strip()
    wrong = done.returncode != 0 or (command[0] == "systemd-analyze" and bool(says))
    print(f"deploy: {what}: {'WRONG' if wrong else 'fine'}, says {command[0]}")
    if wrong:
        print(says)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
