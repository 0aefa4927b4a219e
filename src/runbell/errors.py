"""What can go wrong: every error that Runbell raises on purpose, as one tree.

RunbellError
├── ConfigurationError         a setting, file or installation is not usable; says what to change
│   ├── InvalidSetting         a setting was given a value that it cannot have
│   ├── MissingExtra           a part of Runbell needs packages that are not installed
│   ├── ToolMismatch           a function does not fit the tool that the model sees
│   ├── InvalidSecret          a text is no signing secret, or no public key
│   └── CannotDecrypt          what is stored was encrypted with another key, or is damaged
├── InvalidSignature           a webhook is not proved to be its sender's
│   ├── MalformedWebhook       a header is missing, empty, there twice or no such value (400)
│   ├── SignatureMismatch      no signature is one of ours (401)
│   └── StaleTimestamp         it was signed too long ago, or in the future (401)
├── AddressRefused             a URL or an address that webhooks must not be sent to
├── TransitionNotAllowed       the table of run statuses has no such way
├── ModelError                 a model did not answer; becomes the run's `last_error`
├── RequestRefused             a request that the service answers with an error body
├── RunError                   a run that was waited for did not complete
│   ├── RunFailed              it failed; `code` and `message` are its `last_error`
│   ├── RunCancelled           somebody cancelled it
│   ├── RunExpired             it was not finished at its `expires_at`
│   ├── RunIncomplete          its answer is cut short; `code` is the reason
│   ├── ActionRequired         it wants tool outputs that nobody here can give
│   └── WaitTimeout            it has not ended yet, and goes on (also a TimeoutError)
├── BadAnswer                  a server answered with something that is not the API's
└── StorageError
    ├── StorageUnavailable     locked, full or gone: nothing was written, trying again can help
    │   └── OutcomeUnknown     it was lost during a commit: that may have happened, or not
    ├── Conflict               a row with this identity is there already
    │   └── Overtaken          it was not when this unit of work looked (also a StorageUnavailable)
    └── StaleWrite             the row changed since it was read; this write did nothing
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "ActionRequired",
    "AddressRefused",
    "BadAnswer",
    "CannotDecrypt",
    "ConfigurationError",
    "Conflict",
    "InvalidSecret",
    "InvalidSetting",
    "InvalidSignature",
    "MalformedWebhook",
    "MissingExtra",
    "ModelError",
    "OutcomeUnknown",
    "Overtaken",
    "RequestRefused",
    "RunCancelled",
    "RunError",
    "RunExpired",
    "RunFailed",
    "RunIncomplete",
    "RunbellError",
    "SignatureMismatch",
    "StaleTimestamp",
    "StaleWrite",
    "StorageError",
    "StorageUnavailable",
    "ToolMismatch",
    "TransitionNotAllowed",
    "UnknownCursor",
    "WaitTimeout",
]

ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
"""The values that `last_error.code` of a run can have."""


class RunbellError(Exception):
    """The root: catch this to catch everything that Runbell raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """All of them can be pickled, with their attributes, for another process."""
        return _unpickled, (type(self), self.args, self.__dict__)


def _unpickled(kind: type[RunbellError], args: tuple[Any, ...], about: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(about)
    return error


class ConfigurationError(RunbellError):
    """A setting, file or installation is not usable; the message says what to change."""


class InvalidSetting(ConfigurationError):
    """A setting was given a value that it cannot have; says which option or variable to change."""


class MissingExtra(ConfigurationError):
    """A part of Runbell needs packages that are not installed.

    Attributes:
        extra: the name for `pip install 'runbell[extra]'`.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are missing: pip install 'runbell[{extra}]'")
        self.extra = extra


class InvalidSecret(ConfigurationError):
    """A text is no signing secret, or no public key. The message never holds the text."""


class CannotDecrypt(ConfigurationError):
    """A secret that is stored was encrypted with another key, or is damaged."""


SignatureReason = Literal[
    "missing_header", "duplicate_header", "malformed_header", "no_match", "too_old", "too_new"
]
"""Why a webhook was refused, for numbers and logs: `InvalidSignature.reason`."""


class InvalidSignature(RunbellError):
    """A webhook is not proved to be its sender's. The message names no value of the request.

    Attributes:
        reason: why, as a word that does not change.
        status: what a receiver answers.
    """

    status: int = 401

    def __init__(self, reason: SignatureReason, message: str) -> None:
        super().__init__(message)
        self.reason: SignatureReason = reason


class MalformedWebhook(InvalidSignature):
    """A header is missing, empty, there twice, or holds what such a header cannot hold."""

    status = 400


class SignatureMismatch(InvalidSignature):
    """No signature of the webhook belongs to one of the secrets."""


class StaleTimestamp(InvalidSignature):
    """The signature may be right, but is too old, or from the future: a replay, or a wrong clock.

    Attributes:
        skew: by how many seconds the stamp is ahead of the clock here; negative if it is behind.
    """

    def __init__(self, reason: SignatureReason, message: str, skew: int) -> None:
        super().__init__(reason, message)
        self.skew = skew


class AddressRefused(RunbellError):
    """A URL or an address that webhooks must not be sent to; the message says what to change.

    Attributes:
        reason: why, as a word that does not change: `url` for what is no usable URL, `private` for
            an address that is not public, `unresolvable` for a name that has no address.
    """

    def __init__(
        self, message: str, reason: Literal["url", "private", "unresolvable"] = "url"
    ) -> None:
        super().__init__(message)
        self.reason = reason


class TransitionNotAllowed(RunbellError):
    """The table of run statuses has no way from `source` to `target`."""

    def __init__(self, source: str, target: str) -> None:
        super().__init__(f"a run cannot go from {source!r} to {target!r}")
        self.source = source
        self.target = target


class ModelError(RunbellError):
    """A model did not answer, or refused.

    Attributes:
        code: becomes `last_error.code` of the run.
        message: becomes `last_error.message`; never holds a secret.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message


class RequestRefused(RunbellError):
    """A request that the service answers with an error body in OpenAI's shape.

    Attributes:
        status: the HTTP status of the answer.
        message: the sentence for `error.message`; programs match some of these to the letter.
        type: `error.type`.
        param: the field that is wrong, as a path (`tools[0].function.name`), if one is.
        code: `error.code`, if the error has one.
        headers: more headers for the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the wire's word
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}


class StorageError(RunbellError):
    """The root of what the database can answer."""


class StorageUnavailable(StorageError):
    """The database is locked, full or gone. Nothing was written; trying again can help."""


class OutcomeUnknown(StorageUnavailable):
    """The database was lost while a change was being committed, and could not be asked since: the
    change may have happened, or not."""


class Conflict(StorageError):
    """A row with this identity is there already."""


class Overtaken(Conflict, StorageUnavailable):
    """What a unit of work had looked at was changed by another before it wrote.

    Nothing was written, though the store has executed it again some times: asking again can help.
    """


class UnknownCursor(StorageError):
    """A list has no row with the id that a page was to begin or end at.

    Attributes:
        cursor: that id.
    """

    def __init__(self, cursor: str) -> None:
        super().__init__(f"the list has no {cursor!r}")
        self.cursor = cursor


class StaleWrite(StorageError):
    """The row changed since it was read, so this write did nothing."""


class BadAnswer(RunbellError):
    """A server answered with something that is not the API's, such as a proxy's page."""


class ToolMismatch(ConfigurationError):
    """A function does not fit the tool that the model sees; the message says where."""


class RunError(RunbellError):
    """A run that was waited for did not complete, or ended in a way that is not known here.

    Attributes:
        run: the run as it was last seen: the SDK's object.
        run_id, thread_id: its ids; `thread_id` is None for what has none.
        status: as the server calls it.
        code: `last_error.code`, or the reason of an incomplete run; None without.
        message: `last_error.message`, or what else the server said about it; None without.
        retryable: the same work may well succeed when it is tried again.
    """

    def __init__(
        self,
        sentence: str,
        *,
        run: Any,
        run_id: str,
        thread_id: str | None,
        status: str,
        code: str | None = None,
        message: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.run = run
        self.run_id = run_id
        self.thread_id = thread_id
        self.status = status
        self.code = code
        self.message = message
        self.retryable = retryable


class RunFailed(RunError):
    """The run failed."""


class RunCancelled(RunError):
    """The run was cancelled."""


class RunExpired(RunError):
    """The run was not finished in time."""


class RunIncomplete(RunError):
    """The run's answer is cut short."""


class ActionRequired(RunError):
    """The run waits for the outputs of tool calls for which there is no function here.

    Attributes:
        calls: those calls: `id`, `name` and `arguments` (JSON text) of each.
    """

    def __init__(self, sentence: str, *, calls: tuple[Any, ...], **about: Any) -> None:
        super().__init__(sentence, **about)
        self.calls = calls


class WaitTimeout(RunError, TimeoutError):
    """The time for waiting is over. The run has not ended, and goes on.

    `run` is the run as it was last seen; waiting for it again resumes. `__cause__` is the last
    error, where the latest looks failed.

    Attributes:
        polls: looks that were made.
        waited: seconds.
    """

    def __init__(self, sentence: str, *, polls: int, waited: float, **about: Any) -> None:
        super().__init__(sentence, **about)
        self.polls = polls
        self.waited = waited
