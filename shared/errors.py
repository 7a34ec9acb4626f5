"""Everything this project raises on purpose.

    SelftuneError                 message for the client, `code`, `param`
    ├── InvalidRequest            the request itself is wrong
    ├── NotAuthenticated          no key, or one that is not known
    ├── PermissionDenied          a known key that may not do this
    ├── NotFound                  unknown, or belongs to another project: the two look the same
    ├── Conflict                  right request, wrong moment
    ├── IdempotencyConflict       an Idempotency-Key that came with another request before
    ├── TooLarge                  over a configured limit
    ├── RateLimited               more than the key or its project may have at a time
    ├── Unavailable               a part of the stack is away; trying again helps
    │   ├── StoreUnavailable      Redis does not answer
    │   ├── KeySecretMismatch     the database's keys were hashed with another secret
    │   ├── StorageUnavailable    the object store does not answer
    │   └── NoReplica             no inference server answers for that base model
    │       └── ReplicaLost       one was there and broke the connection
    ├── AdapterRejected           an adapter that must not be served, with the reason
    ├── InvalidTrainingData       a data set that cannot be trained on; becomes a failed job's error
    ├── SchemaTooNew              the database was written by a newer version
    ├── TransitionRefused         a job cannot go from its state to the one asked for
    └── LeaseLost                 somebody else holds the job now; stop writing

Each class knows its code, not its HTTP status: services/api/errors.py has that table.
"""

from __future__ import annotations

from typing import ClassVar


class SelftuneError(Exception):
    """Base of all; `str(error)` may be shown to the client."""

    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class InvalidRequest(SelftuneError):
    """The request is malformed or out of range."""


class NotAuthenticated(SelftuneError):
    """The bearer key is missing or unknown."""

    default_code = "invalid_api_key"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, key_id: str = "") -> None:
        super().__init__(message, code=code, param=param)
        self.key_id = key_id
        """The key that it once was, or is no more; not for the client."""


class PermissionDenied(SelftuneError):
    """The key is known but lacks the scope that this needs."""

    default_code = "insufficient_permissions"


class NotFound(SelftuneError):
    """There is no such object in the caller's project."""


class Conflict(SelftuneError):
    """The object is not in a state that allows this."""


class IdempotencyConflict(SelftuneError):
    """The same Idempotency-Key was sent with another request; sending it again will not help."""

    default_code = "idempotency_key_reused"


class TooLarge(SelftuneError):
    """A body, a file or a count is over its limit."""

    default_code = "request_too_large"


class RateLimited(SelftuneError):
    """A limit of the key or its project is reached. `retry_after_s` tells when it frees itself; None if it does not."""

    default_code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after_s = retry_after_s


class Unavailable(SelftuneError):
    """Something that the request needs is away for the moment."""

    default_code = "service_unavailable"


class StoreUnavailable(Unavailable):
    """Redis does not answer; nothing was promised, the request may be sent again."""

    default_code = "store_unavailable"


class KeySecretMismatch(Unavailable):
    """This server's secret for API keys is not the one that the database was filled with; no key can be looked up."""

    default_code = "key_secret_mismatch"


class StorageUnavailable(Unavailable):
    """The object store does not answer; nothing was promised, the request may be sent again."""

    default_code = "storage_unavailable"


class NoReplica(Unavailable):
    """No inference server answers for this base model."""

    default_code = "model_not_ready"


class ReplicaLost(NoReplica):
    """Inference servers took the request and broke the connection before they answered; the request may be why."""


class AdapterRejected(SelftuneError):
    """The adapter does not fit its base, is damaged, or uses what the server cannot serve."""

    default_code = "adapter_rejected"


class InvalidTrainingData(SelftuneError):
    """The data set cannot be trained on; the message names the first bad line and how many there are."""

    default_code = "invalid_training_file"


class SchemaTooNew(SelftuneError):
    """The database has a form that this version does not know."""

    default_code = "schema_too_new"


class TransitionRefused(SelftuneError):
    """A job's state does not allow the change."""

    default_code = "invalid_job_state"


class LeaseLost(SelftuneError):
    """The caller no longer owns what it writes to."""

    default_code = "lease_lost"
