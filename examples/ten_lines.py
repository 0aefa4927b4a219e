"""What takes the place of the tutorial's loop (`tutorial_loop.py`)."""

from __future__ import annotations

from openai import OpenAI

import runbell


def get_weather(city: str) -> str:
    return f"It rains in {city}."


def wait_for_run(client, run, timeout=60):
    with runbell.Waiter(client, tools=[get_weather]) as waiter:
        run = waiter.wait(run, timeout=timeout)
    return runbell.raise_for_status(run)


def main() -> None:
    client = OpenAI()
    tool = {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    assistant = client.beta.assistants.create(
        model="echo", tools=[{"type": "function", "function": tool}]
    )
    thread = client.beta.threads.create(
        messages=[{"role": "user", "content": 'call get_weather {"city": "Oslo"}'}]
    )
    run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    run = wait_for_run(client, run)
    print(run.status)


if __name__ == "__main__":
    main()
