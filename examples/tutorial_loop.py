"""The loop that every tutorial has, unchanged: retrieve, sleep (0.5 s, then 1.5 times as long each
time, up to 5 s), give up at 60 s.

What it misses:

- `incomplete` is no status that it knows: a run whose answer was cut short is polled until the end.
- `requires_action` neither: a run that wants a tool's output is polled until the end as well.
- A 429, a 5xx or a dropped connection ends it, and nobody knows the run's id any more.
- `elapsed` counts what it slept, not the time: slow answers make 60 seconds a good deal longer.
- The run goes on after the timeout, and the error does not say which run that is.

`ten_lines.py` beside it does what this does, and what it misses.
"""

from __future__ import annotations

import time

from openai import OpenAI


def wait_for_run(client, thread_id, run_id, timeout=60):
    delay = 0.5
    elapsed = 0
    while True:
        run = client.beta.threads.runs.retrieve(thread_id=thread_id, run_id=run_id)
        if run.status == "completed":
            return run
        if run.status in ("failed", "cancelled", "expired"):
            raise RuntimeError(f"Run ended with status {run.status}")
        if elapsed >= timeout:
            raise TimeoutError("Run did not complete in time")
        time.sleep(delay)
        elapsed += delay
        delay = min(delay * 1.5, 5)


def main() -> None:
    client = OpenAI()
    assistant = client.beta.assistants.create(model="echo")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "What is 2+2?"}])
    run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    run = wait_for_run(client, thread.id, run.id)
    print(run.status)


if __name__ == "__main__":
    main()
