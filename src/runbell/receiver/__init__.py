"""Who listens: verify → deduplicate → store → 200 → handle.

receiver   what a program holds: handlers, the endpoint, its life
door       who may come in: limits, signatures, the answer
rows       how an event gets into the inbox and through it
order      in which order the events of one run are handled
work       who handles: claims, retries, dead letters
inbox      the inbox as an `EventSource`, also of another process
feed       fetching what was missed
once       side effects of the user's own
desk       what an operator asks of an inbox
aws        the same with AWS Lambda and SQS
"""

from runbell.errors import MissingExtra

try:
    from runbell.receiver.events import ReceivedEvent, ReceivedRunEvent
    from runbell.receiver.feed import CaughtUp
    from runbell.receiver.handlers import Handlers
    from runbell.receiver.inbox import Inbox
    from runbell.receiver.once import InProgress, Once
    from runbell.receiver.receiver import Receiver
    from runbell.receiver.settings import Options
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("runbell"):
        raise
    raise MissingExtra("the receiver", "receiver") from error

__all__ = [
    "CaughtUp",
    "Handlers",
    "InProgress",
    "Inbox",
    "Once",
    "Options",
    "ReceivedEvent",
    "ReceivedRunEvent",
    "Receiver",
]
