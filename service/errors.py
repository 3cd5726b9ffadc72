"""What can go wrong with a request or a server, drawn once.

    ServiceError
    ├── InvalidField      a field of the request breaks a rule
    ├── MalformedBody     the body is not what its content type says
    ├── UnknownMediaType  the request's content type is not one we read
    ├── NotAcceptable     nothing we could answer with is in the caller's `Accept`
    ├── TooLarge          more rows or bytes than a limit
    ├── Unauthorized      no API key, or one that is not known
    ├── Forbidden         a known key that may not do this, or a page of another origin
    ├── NotServed         the model or version is not served here
    ├── StaleDigest       the address names a digest that is not served
    ├── VersionRefused    a version that was to be loaded cannot be served; the old one is
    ├── RetryableError    not now; carries when to try again
    │   ├── Overloaded    the queue is full
    │   └── Unavailable   loading or draining
    ├── DeadlineExceeded  the caller's time ran out
    ├── CallerLeft        nobody waits for the answer any more
    └── WorkerCrashed     these rows killed every worker that took them

    StartError            the server cannot start; one sentence for the operator
    DeviceLost            a worker's device runs nothing any more: the worker ends, and another starts

Which HTTP status each becomes is one table in `service.http_errors`. Each takes its message first.
"""

from typing import Final

EXIT_REFUSED: Final = 3
"""Exit status of a process of ours that must not be started again: it would refuse again."""


class ServiceError(Exception):
    """Root of all errors that end one request."""


class InvalidField(ServiceError):
    """A field of the request breaks a rule. The message names field, rule and value."""


class MalformedBody(ServiceError):
    """The body is not what its content type says."""


class UnknownMediaType(ServiceError):
    """The request's content type is not one we read."""


class NotAcceptable(ServiceError):
    """The answer's media type is not among those the caller accepts."""


class TooLarge(ServiceError):
    """More rows or bytes than a limit; the message names the limit."""


class Unauthorized(ServiceError):
    """No API key was presented, or one that is not known. The message never tells the key."""


class Forbidden(ServiceError):
    """The key is known, but what it asks for is for admins; or nobody is one here."""


class NotServed(ServiceError):
    """No such model or version is served here."""


class StaleDigest(ServiceError):
    """The model is served, but not with the digest that the address names."""


class VersionRefused(ServiceError):
    """A version that was to be loaded cannot be served; what was served before still is."""


class RetryableError(ServiceError):
    """Not now; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(RetryableError):
    """The queue has no room for these rows."""


class Unavailable(RetryableError):
    """The model is loading, or the server is draining."""


class DeadlineExceeded(ServiceError):
    """The request's `timeout_ms` passed before its images were made."""


class CallerLeft(ServiceError):
    """The client closed its connection before the answer."""


class WorkerCrashed(ServiceError):
    """Workers died each time they ran these rows."""


class StartError(Exception):
    """The server or an offline run cannot start. The message is one sentence for the operator."""


class DeviceLost(Exception):
    """The device runs nothing any more in this process."""
