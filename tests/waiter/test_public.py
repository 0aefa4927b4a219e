"""The API: its names, its cost, its types, the providers, and the pure parts."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types import Batch
from openai.types.fine_tuning import FineTuningJob
from openai.types.responses import Response
from openai.types.vector_stores import VectorStoreFileBatch

import runbell
from runbell.client.providers import provider_of
from runbell.client.view import View
from runbell.pacing import (
    Advised,
    Backoff,
    Backstop,
    Fixed,
    Jittered,
    Policy,
    SqrtElapsed,
    WorthPacer,
)

ROOT = Path(__file__).parents[2]


def test_every_name_is_there_and_no_other():
    for name in runbell.__all__:
        assert getattr(runbell, name) is not None
    assert set(runbell.__all__) <= set(dir(runbell))
    with pytest.raises(AttributeError, match="no attribute 'waiter'"):
        runbell.waiter  # noqa: B018


def test_the_tree_of_errors():
    for name in ("Failed", "Cancelled", "Expired", "Incomplete"):
        assert issubclass(getattr(runbell, f"Run{name}"), runbell.RunError)
    assert issubclass(runbell.WaitTimeout, runbell.RunError)
    assert issubclass(runbell.WaitTimeout, TimeoutError)
    assert issubclass(runbell.RunError, runbell.RunbellError)


def test_the_base_install_needs_openai_alone():
    code = """
import sys
for name in ("msgspec", "sqlalchemy", "starlette", "uvicorn", "aiohttp", "typer", "rich"):
    sys.modules[name] = None
import openai, runbell
for name in runbell.__all__:
    getattr(runbell, name)
runbell.Waiter(openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9")).close()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_importing_runbell_loads_nothing_until_a_name_is_used():
    code = "import sys, runbell; sys.exit('openai' in sys.modules or 'asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


TYPED = """
from openai import AsyncOpenAI, OpenAI
from openai.types.beta.threads import Run
from openai.types.responses import Response
import runbell

async def story(client: AsyncOpenAI, run: Run, response: Response) -> None:
    async with runbell.AsyncWaiter(client, calls_per_minute=500) as waiter:
        reveal_type(await waiter.wait(run, timeout=60))
        reveal_type(await waiter.wait_all([run]))
        reveal_type(await waiter.wait(response))
        async for update in waiter.watch(run):
            reveal_type(update.status)
        await waiter.wait(run, timout=60)

def plain(client: OpenAI, run: Run) -> None:
    with runbell.Waiter(client) as waiter:
        reveal_type(waiter.wait(run))
    reveal_type(runbell.raise_for_status(run))
"""


@pytest.mark.timeout(600)  # where the checks have left no cache, all of the SDK is read
def test_types_reach_the_user(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    # With the settings that the checks have, and so with their cache of the SDK.
    command = [sys.executable, "-m", "mypy", "--strict", str(program)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    notes = [
        line.split("Revealed type is ")[1].strip('"').split(".")[-1].rstrip('"]')
        for line in done.stdout.splitlines()
        if "Revealed type" in line
    ]
    assert notes == ["Run", "Run", "Response", "str", "Run", "Run"], done.stdout
    assert 'Unexpected keyword argument "timout"' in done.stdout


# Providers.


@pytest.mark.parametrize(
    ("item", "stage"),
    [
        (Response.construct(id="resp_1", object="response", status="queued"), "pending"),
        (Response.construct(id="resp_1", object="response", status="completed"), "completed"),
        (Batch.construct(id="batch_1", object="batch", status="finalizing"), "pending"),
        (Batch.construct(id="batch_1", object="batch", status="expired"), "ended"),
        (FineTuningJob.construct(id="ft", object="fine_tuning.job", status="running"), "pending"),
        (
            FineTuningJob.construct(id="f", object="fine_tuning.job", status="succeeded"),
            "completed",
        ),
        (
            VectorStoreFileBatch.construct(
                id="vsfb", object="vector_store.files_batch", status="in_progress"
            ),
            "pending",
        ),
        (Response.construct(id="resp_1", object="response", status="dreaming"), "ended"),
    ],
)
def test_the_object_picks_its_provider(item, stage):
    for name in ("created_at", "expires_at", "error", "errors", "incomplete_details"):
        if getattr(item, name, None) is None:
            object.__setattr__(item, name, None)
    view = provider_of(item).view(item)
    assert (view.id, view.stage) == (item.id, stage)


class Things:
    """A provider that somebody else wrote."""

    def owns(self, item):
        return isinstance(item, dict)

    def view(self, item):
        return View(item["id"], item["state"], "completed" if item["state"] == "ok" else "pending")

    def retrieve(self, client, item, **options):
        return client.pop(0)


def test_a_provider_of_ones_own():
    answers = [{"id": "a", "state": "busy"}, {"id": "a", "state": "ok"}]
    first = {"id": "a", "state": "new"}
    with runbell.Waiter(answers, providers=[Things()], policy=Fixed(0.01)) as waiter:
        assert waiter.wait(first, timeout=60) == {"id": "a", "state": "ok"}
    with pytest.raises(runbell.RunbellError, match="dict is nothing that can be waited for"):
        provider_of(first)


# Policies.


def test_the_tutorials_backoff():
    policy = Backoff(start=0.5, factor=1.5, cap=5.0, max_polls=9)
    delays = [policy.next_delay(0.0, polls) for polls in range(10)]
    expected = [0, 0.5, 0.75, 1.125, 1.6875, 2.53125, 3.796875, 5, 5, None]
    assert delays[-1] is None
    assert delays[:-1] == pytest.approx(expected[:-1])
    assert Backoff().next_delay(0.0, 10**9) == 5.0


def test_the_other_policies():
    assert [Fixed(2).next_delay(9.0, polls) for polls in (0, 1, 9)] == [0, 2, 2]
    assert SqrtElapsed(scale=1).next_delay(9.0, 1) == 3
    assert SqrtElapsed(scale=1, cap=2).next_delay(9.0, 1) == 2
    jittered = Jittered(Fixed(2), spread=0.5, rng=random.Random(1))
    drawn = [jittered.next_delay(0.0, 1) for _ in range(500)]
    assert 1.5 <= min(drawn) < 1.55
    assert 2.45 < max(drawn) <= 2.5
    assert Jittered().next_delay(0.0, 0) == 0
    assert [Backstop(30).next_delay(0, n) for n in (0, 1, 9)] == [30, 60, 300]
    for policy in (Backoff(), Fixed(), Jittered(), SqrtElapsed(), Advised(), Backstop()):
        assert isinstance(policy, Policy)
    for wrong in (
        lambda: Backoff(start=0),
        lambda: Fixed(0),
        lambda: SqrtElapsed(-1),
        lambda: Jittered(spread=3),
    ):
        with pytest.raises(ValueError, match="needs"):
            wrong()


def test_advice_is_followed_and_stretched():
    policy = Advised(Fixed(9))
    assert [policy.next_delay(0.0, 0), policy.next_delay(1.0, 1)] == [0, 9]
    policy.saw(None, 0.5)
    assert policy.next_delay(1.0, 1) == 0.5
    assert policy.next_delay(100.0, 50) == 5
    policy.saw(None, None)
    assert policy.next_delay(1.0, 1) == 9


def test_the_pacer_that_was_given_is_used_also_while_it_is_empty():
    pacer = WorthPacer(60)
    assert len(pacer) == 0
    with runbell.Waiter(OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1"), pacer=pacer) as own:
        assert own._pacer is pacer
