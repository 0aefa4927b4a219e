"""Webhooks on AWS: one function takes them in, the other one handles them. See template.yaml."""

import os
from typing import Any

from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer

from runbell.receiver import Handlers, ReceivedEvent
from runbell.receiver.aws import function_url_handler, sqs_handler

handlers = Handlers()


@handlers.on("thread.run.completed", "response.completed")
def done(event: ReceivedEvent) -> None:
    """Called once for each such event; raise, and it is called again."""
    print(f"{event.subject} is done")


# Both secrets while one is changed, separated by a space.
take_in: Any = function_url_handler(os.environ["WEBHOOK_SECRETS"].split(), os.environ["QUEUE_URL"])
handle: Any = sqs_handler(handlers, DynamoDBPersistenceLayer(os.environ["TABLE"]))
