"""The receiver without a server: a Lambda function that takes webhooks in, and one that handles.

    verify → SQS → 200                      the first function, behind a Function URL
    SQS → handled already? → handlers       the second one

The queue is the inbox, DynamoDB (or whatever idempotency store Powertools has) is its memory, the
dead-letter queue has the dead letters. SQS hands the messages of one run on in the order in which
they came; unlike an inbox, it does not wait for one that was overtaken on its way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from runbell.clock import Clock, SystemClock
from runbell.errors import ConfigurationError, InvalidSignature, MissingExtra, StaleTimestamp
from runbell.receiver.checks import Key, Keys, Refused, head_of, later, too_large
from runbell.receiver.events import Unreadable, event_of, read
from runbell.receiver.handlers import Handler, Handlers
from runbell.webhooks import verify

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.idempotency import (
        BasePersistenceLayer,
        IdempotencyConfig,
    )

__all__ = ["function_url_handler", "sqs_handler"]

logger = logging.getLogger(__name__)

LambdaFunction = Callable[[dict[str, Any], Any], dict[str, Any]]

MAX_BODY: Final = 768_000
"""Bytes of a body: SQS takes 1 MiB a message, base64 and attributes included."""

KEPT_SECONDS: Final = 30 * 86_400
"""How long an id is known. Senders recover 7 days back, and try for 3 more; a message lies in a
queue for 14 days at the most, and as long again among the dead letters, until somebody moves it
back."""

ID, ENCODING, SENT = "webhook-id", "encoding", "webhook-timestamp"

MARK: Final = "base64:"

_NOT_IN_SQS = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SQS_NAME = re.compile(r"[A-Za-z0-9!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]{1,128}")


def function_url_handler(
    secrets: Sequence[Key],
    queue_url: str,
    *,
    sqs: Any = None,
    clock: Clock | None = None,
    tolerance: int = 300,
    max_body: int = MAX_BODY,
) -> LambdaFunction:
    """A Lambda function for a Function URL, API Gateway or a load balancer.

    It verifies a webhook, hands it to SQS, and answers 200 once SQS has it; 503 where SQS has not.
    On a FIFO queue (its name ends in `.fifo`) the group is the run, so that the events of one stay
    in order, and the deduplication id is the event's.

    Args:
        secrets: as `Receiver` takes them.
        queue_url: of the queue.
        sqs: the client of `boto3`; one is made where it is left out.
        clock: what time it is.
        tolerance: seconds that the sender's clock may be off.
        max_body: bytes; SQS takes no more than the default.

    Raises:
        ConfigurationError: there is no secret, or no queue.
        MissingExtra: `boto3` is not installed.
    """
    now = clock or SystemClock()
    keys = Keys(secrets, now.now_ms())
    if not queue_url:
        raise ConfigurationError("there is no queue: is its variable set?")
    client = sqs if sqs is not None else _boto3().client("sqs")

    def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
        try:
            headers = list(_headers(event))
            body = _body(event, headers, max_body)
            now_ms = now.now_ms()
            try:
                verified = verify(
                    keys.good(now_ms), headers, body, now_ms=now_ms, tolerance=tolerance
                )
            except InvalidSignature as error:
                _say_why(error)
                raise Refused(error.status, error.reason, str(error)) from None
            _enqueue(client, queue_url, verified.id, verified.timestamp, body)
        except Refused as refused:
            more = {name.decode(): value.decode() for name, value in refused.headers}
            more.pop("connection", None)  # the connection is Lambda's
            answer = {"error": {"code": refused.reason, "message": str(refused)}}
            return _response(event, refused.status, answer, more)
        return _response(event, 200, {"received": True}, {})

    return handle


def sqs_handler(
    handlers: Handlers,
    persistence: BasePersistenceLayer,
    *,
    keep_seconds: int = KEPT_SECONDS,
) -> LambdaFunction:
    """A Lambda function for the queue: calls the handlers of each event, once.

    The event source mapping has to have `ReportBatchItemFailures`: what fails goes back to the
    queue, alone, or on a FIFO queue together with what came behind it about the same run. After
    `maxReceiveCount` tries, SQS moves it to the dead-letter queue.

    A handler that has succeeded is not called again for the same event, however often SQS delivers
    it. While another invocation handles it, the message goes back. Another body under the same id
    is logged as an error, and not handled.

    Args:
        handlers: filled with `on`, as a `Receiver`'s; async or not.
        persistence: a store of Powertools' idempotency, such as `DynamoDBPersistenceLayer`.
        keep_seconds: how long an id is known.

    Raises:
        ConfigurationError: there is no handler.
        MissingExtra: Powertools are not installed.
    """
    try:
        from aws_lambda_powertools.utilities.batch import SqsFifoPartialProcessor
        from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig
    except ModuleNotFoundError:
        raise MissingExtra("handling events from SQS", "aws") from None
    if not handlers:
        raise ConfigurationError("there is no handler: add one with @handlers.on('…')")
    config = IdempotencyConfig(
        event_key_jmespath="id",
        payload_validation_jmespath="digest",
        raise_on_no_idempotency_key=True,
        expires_after_seconds=keep_seconds,
        hash_function="sha256",
    )

    def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
        config.register_lambda_context(context)
        # It goes by the group where there is one, so it is right for every queue.
        processor = SqsFifoPartialProcessor(skip_group_on_error=True)
        # Whether one of one or one of ten fails, the answer is a list: a raised error would be
        # counted as one of the function's.
        processor.raise_on_entire_batch_failure = False

        def one(record: Any) -> None:
            _handle_record(handlers, persistence, config, record.raw_event)

        with processor(records=event["Records"], handler=one, lambda_context=context):
            processor.process()
        for _, error in _failures(processor):
            logger.warning("an event is handled again later: %s", error)
        return dict(processor.response())

    return handle


def _failures(processor: Any) -> Iterator[tuple[Any, Any]]:
    yield from zip(processor.fail_messages, processor.exceptions, strict=False)


def _handle_record(
    handlers: Handlers,
    persistence: BasePersistenceLayer,
    config: IdempotencyConfig,
    record: Mapping[str, Any],
) -> None:
    """Call each handler of one message that has not succeeded yet; raise the first failure."""
    from aws_lambda_powertools.utilities.idempotency import idempotent_function
    from aws_lambda_powertools.utilities.idempotency.exceptions import IdempotencyValidationError

    event_id, body = _message(record)
    # What is no event fails until SQS moves it to the dead-letter queue, where it can be seen.
    envelope = read(body)
    attempt = int(record["attributes"]["ApproximateReceiveCount"])
    at_ms = int(record["attributes"]["SentTimestamp"])
    event = event_of(event_id, envelope, body, at_ms, attempt)
    failed: Exception | None = None
    for handler in handlers.of(envelope.type):
        once = idempotent_function(
            data_keyword_argument="delivery",
            persistence_store=persistence,
            config=config,
            key_prefix=handler.name,
        )(_caller(handler, event))
        try:
            once(delivery={"id": event_id, "digest": sha256(body).hexdigest()})
        except IdempotencyValidationError:
            logger.error("another body came under the id %s: it is not handled", event_id)
        except Exception as error:  # noqa: BLE001 - the others are called all the same
            failed = failed or error
    if failed is not None:
        raise failed


def _caller(handler: Handler, event: Any) -> Callable[..., None]:
    def run_handler(*, delivery: Mapping[str, str]) -> None:
        try:
            asyncio.run(handler.call(event, None))
        except (SystemExit, asyncio.CancelledError) as error:
            # It has failed, and the rest of the batch has not: these would end the invocation.
            raise RuntimeError(f"the handler ended with {type(error).__name__}") from error

    return run_handler


def _message(record: Mapping[str, Any]) -> tuple[str, bytes]:
    attributes = record["messageAttributes"]
    try:
        event_id = str(attributes[ID]["stringValue"])
        if ENCODING in attributes:
            encoded = str(record["body"]).removeprefix(MARK)
            return event_id, base64.b64decode(encoded, validate=True)
    except (KeyError, binascii.Error):
        raise Unreadable("the message was not put into the queue by this receiver") from None
    return event_id, record["body"].encode()


def _enqueue(client: Any, queue_url: str, event_id: str, timestamp: int, body: bytes) -> None:
    text, attributes = _text(body)
    attributes |= {ID: _string(event_id), SENT: _string(str(timestamp))}
    message: dict[str, Any] = {
        "QueueUrl": queue_url,
        "MessageBody": text,
        "MessageAttributes": attributes,
    }
    if queue_url.endswith(".fifo"):
        message["MessageGroupId"] = _name(_subject(body) or event_id)
        message["MessageDeduplicationId"] = _name(event_id)
    try:
        client.send_message(**message)
    except Exception as error:  # noqa: BLE001 - whatever it is, SQS does not have it
        logger.error("SQS did not take a webhook, its sender is asked to wait: %s", error)
        raise later("storage", "the event cannot be stored now") from None


def _text(body: bytes) -> tuple[str, dict[str, Any]]:
    """The body as SQS takes it: as it is where it can be, so that it can be read in the console."""
    try:
        text = body.decode()
        if text and not _NOT_IN_SQS.search(text):
            return text, {}
    except UnicodeDecodeError:
        pass
    # SQS takes no empty message: of an empty body there is only the mark.
    return f"{MARK}{base64.b64encode(body).decode()}", {ENCODING: _string("base64")}


def _subject(body: bytes) -> str | None:
    try:
        return read(body).subject
    except Unreadable:
        return None


def _name(text: str) -> str:
    """Text as a group's or a message's name: as it is where SQS allows it."""
    return text if _SQS_NAME.fullmatch(text) else sha256(text.encode()).hexdigest()


def _string(text: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": text}


def _headers(event: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Every header, each value apart where Lambda tells them apart."""
    many = event.get("multiValueHeaders")
    pairs = many or {name: [value] for name, value in (event.get("headers") or {}).items()}
    for name, values in pairs.items():
        for value in values:
            yield _bytes(name), _bytes(value)


def _bytes(text: Any) -> bytes:
    # Whatever it is, it must not be an error of another kind than a refusal.
    return str(text).encode("utf-8", "surrogatepass")


def _body(event: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]], limit: int) -> bytes:
    context = event.get("requestContext") or {}
    method = event.get("httpMethod") or (context.get("http") or {}).get("method") or ""
    # Lambda has counted the bytes: what the sender said of them has been believed or not by now.
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    head_of(method, kept, limit)
    text = event.get("body") or ""
    try:
        body = (
            base64.b64decode(text, validate=True) if event.get("isBase64Encoded") else _bytes(text)
        )
    except (binascii.Error, ValueError):
        raise Refused(400, "malformed_length", "the body is not what Lambda says it is") from None
    if len(body) > limit:
        raise too_large(limit)
    return body


_quiet_until: dict[str, float] = {}


def _say_why(error: InvalidSignature) -> None:
    """Write it to the log, the same trouble not more than once a minute."""
    now = time.monotonic()
    if now < _quiet_until.get(error.reason, now):
        return
    _quiet_until[error.reason] = now + 60
    if isinstance(error, StaleTimestamp):
        logger.error(
            "a validly signed webhook was refused: its stamp is %d s %s this clock; unless it is a "
            "replay, the sender's clock is wrong",
            abs(error.skew),
            "ahead of" if error.skew > 0 else "behind",
        )
    else:
        logger.warning("a webhook was refused: %s", error)


def _response(
    event: Mapping[str, Any], status: int, answer: Any, headers: Mapping[str, str]
) -> dict[str, Any]:
    found = {"content-type": "application/json", **headers}
    response: dict[str, Any] = {"statusCode": status, "headers": found, "body": json.dumps(answer)}
    if event.get("multiValueHeaders"):
        # A load balancer that sends such headers takes no others.
        response["multiValueHeaders"] = {name: [value] for name, value in found.items()}
    return response


def _boto3() -> Any:
    try:
        import boto3  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise MissingExtra("handing events to SQS", "aws") from None
    return boto3
