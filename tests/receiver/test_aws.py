"""Lambda and SQS: real events' shapes, a server that speaks SQS and DynamoDB, and no AWS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from aws_lambda_powertools.utilities.idempotency import DynamoDBPersistenceLayer
from moto.server import ThreadedMotoServer

from runbell.clock import VirtualClock
from runbell.errors import ConfigurationError
from runbell.receiver import Handlers
from runbell.receiver.aws import KEPT_SECONDS, function_url_handler, sqs_handler
from runbell.webhooks import Secret, headers_for
from tests.receiver.house import SECRET, body_of, run_event

# boto's own parser of dates, and moto's certificates, are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONTEXT = SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000)
AWS = {
    "region_name": "eu-central-1",
    "aws_access_key_id": "test",
    "aws_secret_access_key": "test",
}
BODY = body_of("response.completed")


class Cloud:
    """A queue with its dead-letter queue, and a table, at a server of this test."""

    def __init__(self, endpoint: str, number: int) -> None:
        self.sqs = boto3.client("sqs", endpoint_url=endpoint, **AWS)
        dynamo = boto3.client("dynamodb", endpoint_url=endpoint, **AWS)
        fifo = {"FifoQueue": "true"}
        self.dead = self.sqs.create_queue(QueueName=f"dead{number}.fifo", Attributes=fifo)[
            "QueueUrl"
        ]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["QueueArn"])
        redrive = {
            "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
            "maxReceiveCount": 3,
        }
        self.queue = self.sqs.create_queue(
            QueueName=f"hooks{number}.fifo",
            Attributes={**fifo, "RedrivePolicy": json.dumps(redrive), "VisibilityTimeout": "30"},
        )["QueueUrl"]
        table = f"ids{number}"
        dynamo.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.persistence = DynamoDBPersistenceLayer(table, boto3_client=dynamo)

    def receive(self, url: str | None = None) -> list[dict[str, Any]]:
        """What Lambda would be invoked with: up to ten messages, in Lambda's spelling."""
        answer = self.sqs.receive_message(
            QueueUrl=url or self.queue,
            MaxNumberOfMessages=10,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {
                    name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                    for name, value in message.get("MessageAttributes", {}).items()
                },
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:hooks.fifo",
                "awsRegion": "eu-central-1",
            }
            for message in answer.get("Messages", [])
        ]

    def invoke(self, function: Any, records: list[dict[str, Any]]) -> list[str]:
        """As the event source mapping does it: what did not fail is deleted, what did is visible
        again at once. The ids of the events that failed."""
        answer = function({"Records": records}, CONTEXT)
        failed = {each["itemIdentifier"] for each in answer["batchItemFailures"]}
        for record in records:
            place = {"QueueUrl": self.queue, "ReceiptHandle": record["receiptHandle"]}
            if record["messageId"] in failed:
                self.sqs.change_message_visibility(**place, VisibilityTimeout=0)
            else:
                self.sqs.delete_message(**place)
        return [
            record["messageAttributes"]["webhook-id"]["stringValue"]
            for record in records
            if record["messageId"] in failed
        ]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


numbers = iter(range(100))


@pytest.fixture
def cloud(endpoint: str) -> Cloud:
    return Cloud(endpoint, next(numbers))


CLOCK = VirtualClock()


def signed(event_id: str, body: bytes, secret: Secret = SECRET, skew: int = 0) -> dict[str, str]:
    return headers_for([secret], event_id, CLOCK.now_ms() // 1000 + skew, body)


def url_event(
    event_id: str = "evt_1", body: bytes = BODY, *, encoded: bool = False, **headers: str
) -> dict[str, Any]:
    """What Lambda gets from a Function URL (payload format 2.0): names in lower case."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/hooks",
        "rawQueryString": "",
        "headers": {
            **signed(event_id, body),
            "content-length": str(len(body)),
            "host": "abc.lambda-url.eu-central-1.on.aws",
            "x-forwarded-proto": "https",
            **headers,
        },
        "requestContext": {
            "accountId": "anonymous",
            "http": {
                "method": "POST",
                "path": "/hooks",
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "Runbell",
            },
            "stage": "$default",
            "timeEpoch": 1_800_000_000_000,
        },
        "body": base64.b64encode(body).decode() if encoded else body.decode(),
        "isBase64Encoded": encoded,
    }


def gateway_event(event_id: str, body: bytes, headers: dict[str, list[str]]) -> dict[str, Any]:
    """What Lambda gets from API Gateway's REST APIs, or from a load balancer with such headers."""
    return {
        "resource": "/hooks",
        "path": "/hooks",
        "httpMethod": "POST",
        "headers": {name: values[-1] for name, values in headers.items()},
        "multiValueHeaders": headers,
        "queryStringParameters": None,
        "requestContext": {"identity": {"sourceIp": "203.0.113.7"}, "stage": "prod"},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def door(cloud: Cloud, **how: Any) -> Any:
    return function_url_handler([SECRET], cloud.queue, sqs=cloud.sqs, clock=CLOCK, **how)


def test_a_webhook_gets_into_the_queue_before_it_is_answered(cloud: Cloud) -> None:
    """As text and in base64; the group is the run, the deduplication id the event's."""
    handle = door(cloud)
    body = run_event("completed", 3, "run_7")
    answer = handle(url_event("evt_1", body), CONTEXT)
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"received": True})
    assert handle(url_event("evt_1", body, encoded=True), CONTEXT)["statusCode"] == 200
    [record] = cloud.receive()
    assert record["body"].encode() == body
    assert record["messageAttributes"]["webhook-id"]["stringValue"] == "evt_1"
    assert record["attributes"]["MessageGroupId"] == "run_7"
    assert record["attributes"]["MessageDeduplicationId"] == "evt_1"


def test_headers_come_in_any_case_and_as_lists(cloud: Cloud) -> None:
    """One that is there twice is a 400 here too."""
    handle = door(cloud)
    headers = {name.title(): [value] for name, value in signed("evt_1", BODY).items()}
    answer = handle(gateway_event("evt_1", BODY, headers), CONTEXT)
    assert answer["statusCode"] == 200
    assert answer["multiValueHeaders"] == {"content-type": ["application/json"]}
    headers["Webhook-Id"] *= 2
    assert handle(gateway_event("evt_1", BODY, headers), CONTEXT)["statusCode"] == 400


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (401, {"webhook-signature": "v1,AAAA"}),
        (400, {"webhook-id": ""}),
        (400, {"webhook-timestamp": "nan"}),
        (415, {"content-type": "text/plain"}),
        (415, {"content-encoding": "gzip"}),
        (401, {"webhook-signature": "v1,\ud800"}),
        (400, {"webhook-id": "\ud800"}),
    ],
    ids=ascii,
)
def test_what_is_no_proper_webhook_stays_out_of_the_queue(
    cloud: Cloud, status: int, change: dict[str, str]
) -> None:
    """The same answers as everywhere."""
    assert door(cloud)(url_event(**change), CONTEXT)["statusCode"] == status
    assert cloud.receive() == []


def test_other_requests_and_bad_bodies_are_refused(cloud: Cloud) -> None:
    """GET, too much, base64 that is none, a clock that is off, and nothing at all."""
    handle = door(cloud)
    event = url_event()
    event["requestContext"]["http"]["method"] = "GET"
    answer = handle(event, CONTEXT)
    assert (answer["statusCode"], answer["headers"]["allow"]) == (405, "POST")
    large = b'{"type":"a","data":"%b"}' % (b"x" * 800_000)
    assert handle(url_event("evt_1", large), CONTEXT)["statusCode"] == 413
    assert handle({**url_event(), "isBase64Encoded": True}, CONTEXT)["statusCode"] == 400
    late = url_event(**signed("evt_1", BODY, skew=-3_600))
    assert handle(late, CONTEXT)["statusCode"] == 401
    assert handle({}, CONTEXT)["statusCode"] == 405
    assert cloud.receive() == []
    for secrets, queue in (([], "q"), ([SECRET], "")):
        with pytest.raises(ConfigurationError):
            function_url_handler(secrets, queue, sqs=cloud.sqs)


def test_without_sqs_there_is_no_200(cloud: Cloud) -> None:
    """A queue that is gone is a 503: the sender comes again."""
    cloud.sqs.delete_queue(QueueUrl=cloud.queue)
    answer = door(cloud)(url_event(), CONTEXT)
    assert answer["statusCode"] == 503
    assert int(answer["headers"]["retry-after"]) > 0


STRANGE = [b"\xff\xfe", b"", b'{"type":"a","data":"\x01"}', "\uffff".encode(), b"[]"]


def test_odd_bodies_travel_byte_for_byte(cloud: Cloud) -> None:
    """What SQS does not take as text goes in base64; what is no event ends in the dead-letter
    queue, and is never a 500."""
    handle = door(cloud)
    for number, body in enumerate(STRANGE):
        answer = handle(url_event(f"evt_{number}", body, encoded=True), CONTEXT)
        assert answer["statusCode"] == 200
    handlers = Handlers()
    handlers.on("*")(lambda event: None)
    function = sqs_handler(handlers, cloud.persistence)
    for _ in range(4):
        cloud.invoke(function, cloud.receive())
    from runbell.receiver.aws import _message

    dead = dict(_message(record) for record in cloud.receive(cloud.dead))
    assert dead == {f"evt_{number}": body for number, body in enumerate(STRANGE)}


def test_only_what_failed_goes_back(cloud: Cloud) -> None:
    """With what stands behind it about the same run; the others are done. A delivery of what is
    done calls nobody, and of two handlers only the one that failed is called again."""
    handle = door(cloud)
    for number in (1, 2):
        handle(url_event(f"a{number}", run_event("in_progress", number, "run_a")), CONTEXT)
        handle(url_event(f"b{number}", run_event("in_progress", number, "run_b")), CONTEXT)
    calls: list[tuple[str, str]] = []
    handlers = Handlers()
    broken = True

    @handlers.on("thread.run.*")
    async def first(event: Any) -> None:
        calls.append(("first", event.id))

    @handlers.on("*")
    def second(event: Any) -> None:
        calls.append(("second", event.id))
        if broken and event.id == "a1":
            raise RuntimeError("not today")

    function = sqs_handler(handlers, cloud.persistence)
    records = cloud.receive()
    assert len(records) == 4
    assert sorted(cloud.invoke(function, records)) == ["a1", "a2"]
    assert ("first", "a2") not in calls
    assert {("first", "b1"), ("second", "b1"), ("second", "b2")} <= set(calls)
    # As after a visibility timeout that was too short, or a delete that was lost.
    done = [r for r in records if r["attributes"]["MessageGroupId"] == "run_b"]
    calls.clear()
    assert function({"Records": done}, CONTEXT) == {"batchItemFailures": []}
    assert calls == []
    broken = False
    assert cloud.invoke(function, cloud.receive()) == []
    assert calls == [("second", "a1"), ("first", "a2"), ("second", "a2")]


def test_poison_ends_in_the_dead_letter_queue(cloud: Cloud) -> None:
    """After `maxReceiveCount` tries; from there it can be put back, and is handled then."""
    door(cloud)(url_event("evt_1", BODY), CONTEXT)
    tries: list[int] = []
    handlers = Handlers()

    @handlers.on("response.*")
    def handler(event: Any) -> None:
        tries.append(event.attempt)
        if len(tries) <= 3:
            raise ValueError

    function = sqs_handler(handlers, cloud.persistence)
    while records := cloud.receive():
        assert cloud.invoke(function, records) == ["evt_1"]
    assert tries == [1, 2, 3]
    [dead] = cloud.receive(cloud.dead)
    assert function({"Records": [dead]}, CONTEXT) == {"batchItemFailures": []}
    assert len(tries) == 4


def test_a_handler_that_exits_fails_alone(cloud: Cloud) -> None:
    """The rest of the batch is handled, and does not go to the dead letters with it."""
    got: list[str] = []
    handlers = Handlers()

    @handlers.on("*")
    def handler(event: Any) -> None:
        got.append(event.id)
        if event.id == "evt_1":
            raise SystemExit(1)

    handle = door(cloud)
    for number in (1, 2):
        handle(url_event(f"evt_{number}", body_of("batch.completed", f"b{number}")), CONTEXT)
    records = []
    while found := cloud.receive():
        records += found
    assert cloud.invoke(sqs_handler(handlers, cloud.persistence), records) == ["evt_1"]
    assert sorted(got) == ["evt_1", "evt_2"]


def test_another_body_under_the_same_id_is_not_handled(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an error in the log, and does not go back to the queue for ever."""
    standard = cloud.sqs.create_queue(QueueName=f"standard{next(numbers)}")["QueueUrl"]
    cloud.queue = standard
    handle = door(cloud)
    got: list[bytes] = []
    handlers = Handlers()
    handlers.on("*")(lambda event: got.append(event.body))
    function = sqs_handler(handlers, cloud.persistence)
    for body in (BODY, body_of("response.failed")):
        handle(url_event("evt_1", body), CONTEXT)
        assert cloud.invoke(function, cloud.receive()) == []
    assert got == [BODY]
    assert "another body came under the id evt_1" in caplog.text


def test_a_function_without_a_handler_does_not_start(cloud: Cloud) -> None:
    """It would take events from the queue, and nobody would have had them."""
    with pytest.raises(ConfigurationError):
        sqs_handler(Handlers(), cloud.persistence)


def test_the_template_names_what_there_is() -> None:
    """Its functions are files beside it, its queues and table are wired as the handlers need."""
    folder = Path(__file__).parents[2] / "examples" / "lambda"
    text = (folder / "template.yaml").read_text()
    for needed in ("ReportBatchItemFailures", "FifoQueue: true", "maxReceiveCount", "BillingMode"):
        assert needed in text
    # What is moved back from the dead letters on their last day is still known.
    retained = int(text.split("MessageRetentionPeriod: ")[1].split()[0])
    assert 2 * retained <= KEPT_SECONDS
    source = (folder / "app.py").read_text()
    for name in ("take_in", "handle"):
        assert f"app.{name}" in text
        assert f"{name}: Any = " in source
