"""A production endpoint in ten lines: `uvicorn app:app --port 8000`. See docs/receiving.md."""

import os

from fastapi import FastAPI

from runbell.receiver import ReceivedEvent, Receiver

receiver = Receiver(secrets=os.environ["WEBHOOK_SECRETS"].split(), inbox="sqlite:///inbox.db")


@receiver.on("thread.run.completed", "response.completed")
async def done(event: ReceivedEvent) -> None:
    """Called at least once for each such event; raise, and it is called again."""
    async with receiver.once(f"mail:{event.id}") as first:
        if first:
            print(f"{event.subject} is done")


app = FastAPI(lifespan=receiver.lifespan)
app.include_router(receiver.fastapi_router("/hooks"))
