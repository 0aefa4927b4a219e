"""`python -m tests.sdks 1.109 2.54 …`: the scenarios, with the SDK of each `.venv-sdk-VERSION`.

One service answers them all. Each version has a process of its own, and limited time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from runbell.cli.served import ServedProcess

ROOT = Path(__file__).parents[2]
SCENARIOS = Path(__file__).with_name("scenarios.py")
LIMIT_SECONDS = 300.0


def main() -> None:
    failed = []
    with ServedProcess("--log-level", "warning") as service:
        for version in sys.argv[1:]:
            began = time.monotonic()
            if not _passes(version, service):
                failed.append(version)
            print(f"openai {version}: {time.monotonic() - began:.1f} s", flush=True)
    if failed or not sys.argv[1:]:
        sys.exit(f"failed with: {', '.join(failed) or 'no version was named'}")


def _passes(version: str, service: ServedProcess) -> bool:
    python = ROOT / f".venv-sdk-{version}" / "bin" / "python"
    # The SDK is told everything by the script; what is set here must not reach it.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "AZURE_", "PYTHON"))}
    # The waiter needs nothing but the SDK: it is used from where it stands.
    env["PYTHONPATH"] = str(ROOT / "src")
    command = [str(python), str(SCENARIOS), version, service.base_url, service.api_key]
    try:
        return subprocess.run(command, env=env, timeout=LIMIT_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"not within {LIMIT_SECONDS:.0f} s", flush=True)
        return False


if __name__ == "__main__":
    main()
