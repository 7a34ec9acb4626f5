"""Identifiers on the wire: `file-…`, `ftjob-…`, `ftckpt_…`, and model names `ft:{base}:{org}:{suffix}:{id}`."""

from __future__ import annotations

import re
import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_file_id() -> str:
    return f"file-{_random(22)}"


def new_upload_id() -> str:
    return f"upload_{_random(24)}"


def new_part_id() -> str:
    return f"part_{_random(24)}"


def new_job_id() -> str:
    return f"ftjob-{_random(24)}"


def new_batch_id() -> str:
    return f"batch_{_random(24)}"


def new_batch_request_id() -> str:
    return f"batch_req_{_random(24)}"


def new_eval_id() -> str:
    return f"eval_{_random(24)}"


def new_eval_run_id() -> str:
    return f"evalrun_{_random(24)}"


def new_checkpoint_id() -> str:
    return f"ftckpt_{_random(24)}"


def new_permission_id() -> str:
    return f"cp_{_random(24)}"


def new_webhook_id() -> str:
    return f"we_{_random(24)}"


def new_alias_uid() -> str:
    return f"alias_{_random(24)}"


def new_event_id() -> str:
    return f"evt_{_random(24)}"


def new_request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def new_token() -> str:
    """Return 128 random bits, to tell one holder of a lease from another."""
    return secrets.token_hex(16)


def new_project_id() -> str:
    return f"proj_{_random(24)}"


def new_service_account_id() -> str:
    return f"svc_acct_{_random(24)}"


def new_key_id() -> str:
    return f"key_{_random(24)}"


def new_api_key() -> str:
    """Return a bearer key with 256 random bits."""
    return f"sk-selftune-{secrets.token_urlsafe(32)}"


def model_name(base: str, organization: str, suffix: str | None) -> str:
    """Form a new fine-tuned model's name, `ft:{base}:{org}:{suffix}:{8 random characters}`.

    Characters of the suffix that would break a path or the name itself become `-`; no suffix leaves the place empty.
    """
    return f"ft:{base}:{organization}:{_UNSAFE.sub('-', suffix or '')}:{_random(8)}"


def is_fine_tuned(model: str) -> bool:
    """Whether a name is one that `model_name` or `checkpoint_name` has formed."""
    return model.startswith("ft:")


def checkpoint_name(model: str, step: int) -> str:
    """Form the name under which an intermediate checkpoint of `model` answers: its own id, then `:ckpt-step-{step}`."""
    stem, _, _ = model.rpartition(":")
    return f"{stem}:{_random(8)}:ckpt-step-{step}"


_POLICY = "rollouts:"


def policy_name(job_id: str, sha256: str) -> str:
    """Form the name under which replicas know the model of one step of a reinforcement job; clients never do.

    It stands for these bytes alone: a replica that has not heard of the newest step cannot answer for it.
    """
    return f"{_POLICY}{job_id}:{sha256[:16]}"


def is_policy(name: str) -> bool:
    """Whether a name is one that `policy_name` has formed."""
    return name.startswith(_POLICY)


def without_step(name: str) -> str:
    """Return what the models of all steps of a job are called together; other names stay as they are."""
    return name.rpartition(":")[0] if is_policy(name) else name


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(24)}"


def new_item_id(prefix: str) -> str:
    """Return an id for an item of a response's input, such as `msg_…`."""
    return f"{prefix}_{secrets.token_hex(24)}"
