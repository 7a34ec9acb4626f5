"""`selftune import-openai`: bring an export's files and jobs to this server. Running it twice is the same as once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from services.cli.export_folder import PURPOSE, ExportedFile, ExportedJob, content_of, read_files, read_jobs
from services.cli.openai_api import OpenAIApi
from shared.errors import InvalidRequest, NotFound
from shared.paths import write_atomic

STATE = ".selftune-import.json"
_HYPERPARAMETERS = (
    "n_epochs", "batch_size", "learning_rate_multiplier", "beta", "compute_multiplier", "eval_interval", "eval_samples",
    "reasoning_effort",
)  # fmt: skip
_METHODS = ("supervised", "dpo", "reinforcement")
_METADATA_ID = "openai_job_id"
_MAX_METADATA = 16


class Imported(Struct, kw_only=True):
    """New ids by old ones, on one server."""

    files: dict[str, str] = {}
    jobs: dict[str, str] = {}


@dataclass(frozen=True)
class Row:
    """A line of the table: what became of an old object."""

    old: str
    new: str
    note: str = ""


@dataclass
class Importer:
    """One run. With `dry_run` nothing is sent and nothing is remembered; jobs are started only with `train`."""

    folder: Path
    api: OpenAIApi
    train: bool = False
    dry_run: bool = False
    model: str | None = None
    rows: list[Row] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    """Old model names, and what they are called here."""

    def run(self) -> None:
        """Raises InvalidRequest for an export that is not whole, before anything is sent, and what `api` raises."""
        files, jobs = read_files(self.folder), read_jobs(self.folder)
        contents = _contents(self.folder, files)
        self._all_states = _read_states(self.folder)
        self._state = self._all_states.setdefault(self.api.base_url, Imported())
        self._bases = [item["id"] for item in self.api.get("/models")["data"] if item.get("owned_by") == "system"]
        for file in files:
            self._import_file(file, contents.get(file.id))
        for job in jobs:
            self._import_job(job)

    def alias_lines(self) -> list[str]:
        """Return the lines for the settings file that let clients keep the old model names."""
        pairs = (f"{_toml(old)} = {_toml(new)}" for old, new in sorted(self.aliases.items()) if old != new)
        return ["[model_aliases]", *pairs]

    def _import_file(self, file: ExportedFile, content: Path | None) -> None:
        if content is None:
            self.rows.append(Row(file.id, "-", f"skipped: its purpose is '{file.purpose}', not '{PURPOSE}'"))
            return
        known = self._known("/files", self._state.files.get(file.id))
        if known is not None:
            self.rows.append(Row(file.id, known["id"], "was here already"))
        elif self.dry_run:
            self.rows.append(Row(file.id, "?", f"would be uploaded: {content.stat().st_size:,} bytes"))
        else:
            name = file.filename or f"{file.id}.jsonl"
            made = self.api.upload(content, filename=name, purpose=PURPOSE)
            self._state.files[file.id] = made["id"]
            self._remember()
            self.rows.append(Row(file.id, made["id"], "uploaded"))

    def _import_job(self, job: ExportedJob) -> None:
        known = self._known("/fine_tuning/jobs", self._state.jobs.get(job.id))
        if known is not None:
            self._note_aliases(job, known)
            self.rows.append(Row(job.id, known["id"], known["status"]))
            return
        try:
            body = self._request(job)
        except InvalidRequest as error:
            self.rows.append(Row(job.id, "-", f"skipped: {error.message}"))
            return
        if self.dry_run or not self.train:
            self._note_base(job, body["model"])
            self.rows.append(Row(job.id, "?", f"would train on {body['model']}; --train starts it"))
            return
        self._start(job, body)

    def _start(self, job: ExportedJob, body: dict[str, Any]) -> None:
        try:
            made = self._create(job, body)
        except (InvalidRequest, NotFound) as error:
            self.rows.append(Row(job.id, "-", f"refused: {error.message}"))
            return
        self._note_base(job, made["model"])
        self._state.jobs[job.id] = made["id"]
        self._remember()
        self.rows.append(Row(job.id, made["id"], f"{made['status']}, on {made['model']}"))

    def _create(self, job: ExportedJob, body: dict[str, Any]) -> dict[str, Any]:
        """Create the job; the old model's name may be an alias, which the server alone knows, so it is tried first."""
        if self.model is None and not job.model.startswith("ft:") and body["model"] != job.model:
            try:
                return self._post(job, {**body, "model": job.model})
            except NotFound as error:
                if error.param != "model":
                    raise
        return self._post(job, body)

    def _post(self, job: ExportedJob, body: dict[str, Any]) -> dict[str, Any]:
        """Send it under a key that tells requests apart: with other files or another model it is another job."""
        files = ":".join(filter(None, [body["training_file"], body.get("validation_file")]))
        digest = hashlib.sha256(f"{body['model']}:{files}".encode()).hexdigest()[:16]
        return self.api.post("/fine_tuning/jobs", body, idempotency_key=f"import-openai:{job.id}:{digest}")

    def _request(self, job: ExportedJob) -> dict[str, Any]:
        """Turn an old job into the body of a new one. Raises InvalidRequest with the reason why not."""
        if job.status in ("failed", "cancelled"):
            raise InvalidRequest(f"it ended as {job.status}")
        body: dict[str, Any] = {
            "model": self._model(job.model),
            "training_file": self._file(job.training_file, "training file"),
            "suffix": job.user_provided_suffix,
            "seed": job.seed,
            "metadata": _metadata(job),
            **_method(job),
        }
        if job.validation_file:
            body["validation_file"] = self._file(job.validation_file, "validation file")
        return {name: value for name, value in body.items() if value is not None}

    def _model(self, old: str) -> str:
        """Find what to train on: --model, the same name, or the server's only base if it does not know that."""
        if old in self.aliases:
            return self.aliases[old]
        if old.startswith("ft:"):
            raise InvalidRequest(f"it goes on from {old}, which is not trained here yet; run this again when it is")
        if self.model is not None:
            return self.model
        try:
            return str(self.api.get(f"/models/{old}")["id"])
        except NotFound:
            return str(self._bases[0]) if len(self._bases) == 1 else old

    def _file(self, old: str, what: str) -> str:
        new = self._state.files.get(old)
        if new is None and self.dry_run and any(row.old == old and row.new == "?" for row in self.rows):
            return old
        if new is None:
            raise InvalidRequest(f"its {what} {old} is not in the export")
        return new

    def _note_base(self, job: ExportedJob, model: str) -> None:
        if not job.model.startswith("ft:"):
            self.aliases[job.model] = model

    def _note_aliases(self, job: ExportedJob, known: dict[str, Any]) -> None:
        self._note_base(job, known["model"])
        if job.fine_tuned_model and known.get("fine_tuned_model"):
            self.aliases[job.fine_tuned_model] = known["fine_tuned_model"]

    def _known(self, path: str, new_id: str | None) -> dict[str, Any] | None:
        """Return the object that an earlier run made, if it is still there."""
        if new_id is None:
            return None
        try:
            return self.api.get(f"{path}/{new_id}")
        except NotFound:
            return None

    def _remember(self) -> None:
        write_atomic(self.folder / STATE, msgspec.json.encode(self._all_states))


def show(importer: Importer, say: Callable[[str], None]) -> None:
    """Print what became of everything, and the lines for the settings file."""
    width = max([len(row.old) for row in importer.rows], default=0)
    new_width = max([len(row.new) for row in importer.rows], default=0)
    for row in importer.rows:
        say(f"{row.old:<{width}}  →  {row.new:<{new_width}}  {row.note}".rstrip())
    lines = importer.alias_lines()
    if len(lines) > 1:
        say("\nLines for selftune.toml that let clients keep the old names:\n")
        for line in lines:
            say(line)


def _contents(folder: Path, files: list[ExportedFile]) -> dict[str, Path]:
    wanted = [file for file in files if file.purpose == PURPOSE]
    found = {file.id: content_of(folder, file) for file in wanted}
    missing = [file_id for file_id, content in found.items() if content is None]
    if missing:
        raise InvalidRequest(
            f"{folder}: no content for {', '.join(missing)}; "
            "put it into files/ under its id, or take it out of files.json"
        )
    return {file_id: content for file_id, content in found.items() if content is not None}


def _read_states(folder: Path) -> dict[str, Imported]:
    path = folder / STATE
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Imported])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequest(f"{path}: {error}; delete it to start over") from error


def _method(job: ExportedJob) -> dict[str, Any]:
    """Return the part of the request that says how to train."""
    kind = (job.method or {}).get("type", "supervised")
    if kind not in _METHODS:
        raise InvalidRequest(f"its method is '{kind}'; this server trains {', '.join(_METHODS)}")
    asked = (job.method or {}).get(kind) or {}
    chosen = asked.get("hyperparameters") or job.hyperparameters or {}
    known = {name: chosen[name] for name in _HYPERPARAMETERS if chosen.get(name) is not None}
    return {"method": {"type": kind, kind: {"hyperparameters": known, **_graded(asked, kind)}}}


def _graded(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return what reinforcement has beside hyperparameters. Raises InvalidRequest without a grader."""
    if kind != "reinforcement":
        return {}
    if not asked.get("grader"):
        raise InvalidRequest(f"its method is '{kind}', and it has no grader")
    return {name: asked[name] for name in ("grader", "response_format") if asked.get(name) is not None}


def _metadata(job: ExportedJob) -> dict[str, str]:
    kept = dict(job.metadata or {})
    return kept if len(kept) >= _MAX_METADATA else {**kept, _METADATA_ID: job.id}


def _toml(text: str) -> str:
    """Quote as a TOML basic string, whose escapes are JSON's."""
    return msgspec.json.encode(text).decode()
