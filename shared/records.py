"""What is stored. Reading is tolerant: unknown fields are skipped, and every field added later has a default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import UNSET, Struct
from msgspec.structs import asdict, replace

from shared.model_records import Access
from shared.projects import ALL_SCOPES, Limits
from shared.schemas.checkpoints import CheckpointPermission
from shared.schemas.files import File, FilePurpose
from shared.schemas.integrations import JobIntegration
from shared.schemas.jobs import Job, JobError, JobStatus
from shared.schemas.methods import (
    DpoHyperparameters,
    DpoMethod,
    KtoHyperparameters,
    KtoMethod,
    LabelWeights,
    Method,
    MethodName,
    OrpoHyperparameters,
    OrpoMethod,
    OwnMethod,
    ReinforcementHyperparameters,
    ReinforcementMethod,
    RewardMethod,
    SupervisedHyperparameters,
    SupervisedMethod,
)
from shared.schemas.models import Model
from shared.schemas.options import ShownOptions, TrainingOptions
from shared.schemas.organization import Scope
from shared.states import JobState

DEFAULT_PROJECT = "proj_default"

Priority = Literal["low", "normal", "high"]


class KeyRecord(Struct, frozen=True, kw_only=True):
    """An API key; the key itself is not stored, its keyed hash is the record's name."""

    project: str
    name: str
    created_at: int
    id: str = ""
    kind: Literal["built_in", "admin", "project"] = "project"
    """`built_in` is the data folder's admin key."""
    scopes: tuple[Scope, ...] = ALL_SCOPES
    service_account: str | None = None
    redacted: str = "***"
    expires_at: int | None = None
    limits: Limits = Limits()
    formers_until: int = 0
    """Unix time until which values that were rotated out may work, each of them no longer than its own grace."""

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def access(self) -> Access:
        """What decides which models the key sees."""
        return Access(project=self.project, key_id=self.id, is_admin="admin" in self.scopes)


class FileRecord(Struct, frozen=True, kw_only=True):
    """A file whose bytes lie in `Paths.file_content(id)`."""

    id: str
    project: str
    filename: str
    purpose: FilePurpose
    size_bytes: int
    sha256: str
    created_at: int
    expires_at: int | None = None
    """Unix time from which on the file counts as deleted; None keeps it."""

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def public(self) -> File:
        return File(
            id=self.id,
            bytes=self.size_bytes,
            created_at=self.created_at,
            expires_at=UNSET if self.expires_at is None else self.expires_at,
            filename=self.filename,
            purpose=self.purpose,
        )


class JobRecord(Struct, frozen=True, kw_only=True):
    """A fine-tuning job. `requested` is what the client asked for, `resolved` what `auto` became."""

    id: str
    project: str
    organization: str
    created_at: int
    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    requested: SupervisedHyperparameters
    resolved: SupervisedHyperparameters | None = None
    metadata: dict[str, str] | None = None
    status: JobState = JobState.VALIDATING_FILES
    fine_tuned_model: str | None = None
    model_name: str
    """The name its model will have; chosen at submit, so that a second attempt publishes under the same one."""
    result_files: list[str] = []
    trained_tokens: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    error: JobError | None = None
    attempts: int = 0
    """How often a training process was started for it without getting further than the one before."""
    reached_step: int = 0
    """Step of its newest resume point when the last attempt began."""
    validations: int = 0
    """How often its files were begun to be read and not read to the end."""
    started: bool = False
    """Whether a training process was ever started for it."""
    method: MethodName = "supervised"
    requested_beta: float | Literal["auto"] = "auto"
    resolved_beta: float | None = None
    """`beta` of DPO, KTO or ORPO, as asked for and as used."""
    reinforcement: ReinforcementMethod | None = None
    """The grader, and hyperparameters as asked for; for reinforcement alone."""
    resolved_reinforcement: ReinforcementHyperparameters | None = None
    """Those as numbers."""
    requested_weights: LabelWeights = LabelWeights()
    resolved_weights: LabelWeights | None = None
    """KTO's weights of the labels, as asked for and as used."""
    parent: str | None = None
    """The fine-tuned model that training goes on from; None starts at the base."""
    options: TrainingOptions = TrainingOptions()
    integrations: list[JobIntegration] = []
    training_tokens: str = ""
    validation_tokens: str = ""
    """Names of the folders of tokens that the files were found to have; empty before, and without a file."""
    estimated_memory_bytes: int | None = None
    """Most that its training process is expected to hold; None before its files are read, and for unknown bases."""
    memory_parts: dict[str, int] = {}
    """The same, part by part."""
    traceparent: str = ""
    """The request that created it, in W3C's form, where that was traced."""
    waiting_reason: str = ""
    """Why it waits in the queue although a worker is free; empty once one has begun."""

    @property
    def priority(self) -> Priority:
        """In which of the queue's classes it is."""
        return self.options.priority or "normal"

    @property
    def needed_memory_bytes(self) -> int | None:
        """What a worker must have to take it: what its owner says, else the estimate."""
        said = self.options.memory_gb
        return self.estimated_memory_bytes if said is None else round(said * 1e9)

    def public(self, *, paused_as: Literal["paused", "queued"] = "paused") -> Job:
        """Show the job to a client; `paused_as` is the status of a paused one, for clients with a closed list."""
        effective = self.resolved or self.requested
        status: JobStatus = self.status.value
        if status == "paused":
            status = paused_as
        return Job(
            id=self.id,
            created_at=self.created_at,
            finished_at=self.finished_at,
            estimated_finish=self.estimated_finish,
            model=self.parent or self.model,
            fine_tuned_model=self.fine_tuned_model,
            organization_id=f"org-{self.organization}",
            status=status,
            training_file=self.training_file,
            validation_file=self.validation_file,
            result_files=self.result_files,
            trained_tokens=self.trained_tokens,
            hyperparameters=effective,
            method=self._method(effective) or UNSET,
            seed=self.seed,
            error=self.error,
            integrations=self.integrations,
            metadata=self.metadata,
            user_provided_suffix=self.suffix,
            selftune=self._shown_options(effective),
        )

    def _shown_options(self, effective: SupervisedHyperparameters) -> ShownOptions:
        options = {name: getattr(self.options, name) for name in TrainingOptions.__struct_fields__}
        waits = self.status in (JobState.QUEUED, JobState.RUNNING)
        return ShownOptions(
            **options,
            method=self._own_method(effective),
            estimated_memory_bytes=self.estimated_memory_bytes,
            waiting_reason=(self.waiting_reason or None) if waits else None,
        )

    @property
    def _beta(self) -> float | Literal["auto"]:
        return self.requested_beta if self.resolved_beta is None else self.resolved_beta

    def _method(self, effective: SupervisedHyperparameters) -> Method | None:
        """Return the method as OpenAI's clients know it; None for one of this server alone."""
        if self.method == "supervised":
            return Method(type="supervised", supervised=SupervisedMethod(hyperparameters=effective))
        if self.method == "dpo":
            chosen = DpoHyperparameters(**asdict(effective), beta=self._beta)
            return Method(type="dpo", dpo=DpoMethod(hyperparameters=chosen))
        if self.reinforcement is not None:
            used = self.resolved_reinforcement or self.reinforcement.hyperparameters
            return Method(type="reinforcement", reinforcement=replace(self.reinforcement, hyperparameters=used))
        return None

    def _own_method(self, effective: SupervisedHyperparameters) -> OwnMethod | None:
        if self.method == "kto":
            weights = self.resolved_weights or self.requested_weights
            kto = KtoHyperparameters(
                **asdict(effective),
                beta=self._beta,
                desirable_weight=weights.desirable,
                undesirable_weight=weights.undesirable,
            )
            return OwnMethod(type="kto", kto=KtoMethod(hyperparameters=kto))
        if self.method == "orpo":
            orpo = OrpoHyperparameters(**asdict(effective), beta=self._beta)
            return OwnMethod(type="orpo", orpo=OrpoMethod(hyperparameters=orpo))
        if self.method == "reward":
            return OwnMethod(type="reward", reward=RewardMethod(hyperparameters=effective))
        return None


class BaseRecord(Struct, frozen=True, kw_only=True):
    """A base model that can be trained on and served."""

    id: str
    path: str
    """Folder with config.json, safetensors and tokenizer: absolute, or relative to the data folder, which may move."""
    fingerprint: str
    """SHA-256 over what an adapter depends on: architecture, sizes, vocabulary."""
    context_length: int
    created_at: int
    architecture: str = ""
    parameters: int = 0
    origin: str = ""
    """Id of the base that this one was fine-tuned from, every weight of it; empty for the operator's own. Only who may
    use the fine-tuned model of the same name may use it."""

    def placed(self, home: Path) -> BaseRecord:
        """Make the path absolute, for a data folder that is at `home` now."""
        return replace(self, path=str(home / self.path))

    def public(self, organization: str) -> Model:
        return Model(id=self.id, created=self.created_at, owned_by=organization if self.origin else "system")


class AdapterRecord(Struct, frozen=True, kw_only=True):
    """A fine-tuned model: an immutable LoRA adapter on a base, or, `whole`, a base of its own."""

    name: str
    """The public model id, `ft:…`; never used again for other bytes."""
    version: int = 1
    int_id: int = 0
    """The adapter's number inside the engines: unique, 1 … 2**31 - 1; the registry sets it."""
    base: str
    base_fingerprint: str
    folder: str
    """Relative to the data folder."""
    sha256: str
    rank: int
    project: str
    job_id: str
    """The job that made it; empty for an adapter from elsewhere."""
    created_at: int
    listed: bool = False
    """Whether clients see it; until its job has succeeded only the replicas know it."""
    whole: bool = False
    """Whether every weight was trained: `folder` is a base model's then, and `base` is `name`."""
    named_base: str = ""
    """What an adapter from elsewhere calls its base; empty if it does not."""
    size_bytes: int = 0
    """What it counts towards its project's storage while it is listed; 0 for one of before that was counted."""
    kind: Literal["text", "reward"] = "text"
    """What it is for: `text` writes, `reward` scores what others have written, and no inference server has it."""

    @property
    def served_on(self) -> str:
        """The base whose inference servers serve it; a name that none has for what they do not serve."""
        return self.base if self.kind == "text" else self.name

    def public(self, organization: str) -> Model:
        return Model(id=self.name, created=self.created_at, owned_by=organization)

    def as_listed(self) -> AdapterRecord:
        return replace(self, listed=True)


class PermissionRecord(Struct, frozen=True, kw_only=True):
    """A project's right to use a model of another project."""

    id: str
    project: str
    created_at: int
    order: int = 0

    def public(self) -> CheckpointPermission:
        return CheckpointPermission(id=self.id, created_at=self.created_at, project_id=self.project)


class Residency(Struct, frozen=True, kw_only=True):
    """How one adapter stands on one replica.

    `staged`: its files are there and it loads at its first request; `draining`: it is deleted or replaced, and its last
    answers are going out; `failed`: refused for a while; `quarantined`: refused until somebody asks for it.
    """

    state: Literal["staged", "loading", "warm", "draining", "failed", "quarantined", "gone"]
    reason: str = ""
    load_ms: float | None = None
    at: float = 0.0

    @property
    def is_refusal(self) -> bool:
        """Whether the replica will not serve the adapter, for now or for good."""
        return self.state in ("failed", "quarantined")


class ReplicaRecord(Struct, frozen=True, kw_only=True):
    """An inference server that is alive; vanishes with its heartbeat."""

    id: str
    url: str
    """Where the gateway reaches it, such as http://127.0.0.1:41234; empty until it listens."""
    base: str
    state: Literal["waiting", "starting", "ready", "draining"]
    reason: str = ""
    engine_pid: int | None = None
    max_loras: int = 0
    max_lora_rank: int = 0
    resident: list[str] = []
    """Names of the adapters that its engine says it holds."""
    running: int = 0
    """Requests that it has let in, and not answered yet."""
    beat: int = 0
    """Counts the heartbeats."""
    max_running: int = 0
    """Requests that its engine answers at a time; more wait. 0 from one that does not say."""
    started_at: float = 0.0
    tasks: tuple[str, ...] = ("generate",)
    """What its engine can do, in vLLM's words: `generate`, `embed`."""
    merged: str = ""
    """The fine-tuned model that is merged into its weights, which it answers for alone; empty for an ordinary one."""


class WorkerRecord(Struct, frozen=True, kw_only=True):
    """A trainer that is alive; vanishes with its heartbeat."""

    id: str
    state: Literal["preparing", "idle", "training", "draining"]
    reason: str = ""
    job_id: str | None = None
    """One of job_ids."""
    job_ids: list[str] = []
    """Jobs that it trains."""
    waiting_job_ids: list[str] = []
    """Jobs that it has taken from the queue, and that wait until its device is free."""
    started_at: float = 0.0
    memory_bytes: int | None = None
    """What a training process may need here; None from a worker that does not say, which takes every job."""
