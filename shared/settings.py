"""Configuration: one frozen Struct, read once from a TOML file and SELFTUNE_* variables, then passed down.

Precedence, strongest first: command line, environment, file, default. The file is `SELFTUNE_CONFIG`, else
`selftune.toml` in the data folder; a missing default file is fine, a missing named one is an error.
Processes that this project starts are given every setting as a variable, and read no file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shared import embedded_valkey
from shared.errors import InvalidRequest
from shared.ids import is_fine_tuned
from shared.paths import Paths
from shared.prices import TokenPrice

ENV_PREFIX = "SELFTUNE_"
_COMPLETE = f"{ENV_PREFIX}SETTINGS"
"""Set to `complete`, it says that the variables are all there is: those that are empty mean it, and no file is read."""
EMBEDDED = "embedded"
TOOLS_AUTO = "auto"
TOOLS_OFF = "off"
EMBEDDED_ID = "SmolLM2-135M-Instruct"


def _setting(description: str, **constraints: Any) -> Meta:
    return Meta(description=description, **constraints)


class JudgeEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server outside that speaks OpenAI's API, whose models may be judges; its key is in a variable or a file."""

    base_url: Annotated[str, Meta(pattern=r"\Ahttps?://[^\s?#@]+\Z")]
    key_env: str = ""
    key_file: str = ""


def _port(description: str, *, ge: int = 0) -> Meta:
    return _setting(description, ge=ge, le=65535)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an operator can set; each field's description is what `selftune up --help` prints."""

    data_dir: Annotated[str, _setting("Folder for everything that is kept: database, files, jobs, adapters, keys.")] = (
        "~/.selftune"
    )
    storage_url: Annotated[
        str,
        _setting(
            "Where files, checkpoints and models are kept, s3://bucket or s3://bucket/prefix, with credentials in the "
            "AWS_* variables; empty: the data folder.",
            pattern=r"\A(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9/._-]*)?)?\Z",
        ),
    ] = ""
    storage_endpoint: Annotated[
        str,
        _setting(
            "Address of an S3-compatible server, https://…, or http://… on a private network; empty: Amazon's.",
            pattern=r"\A(https?://[^/@\s]+/?)?\Z",
        ),
    ] = ""
    python_graders: Annotated[
        bool,
        _setting("Whether graders may be Python programs of projects, run in a cage; see docs/python-graders.md."),
    ] = False
    host: Annotated[str, _setting("Address that the API listens on.")] = "127.0.0.1"
    port: Annotated[int, _port("Port that the API listens on.", ge=1)] = 8000
    redis_url: Annotated[
        str, _setting("Redis or Valkey to use, redis://… or unix://…; empty starts an embedded one in the data folder.")
    ] = ""
    valkey_fsync: Annotated[
        Literal["everysec", "always"],
        _setting(
            "When the embedded database forces changes to disk: 'everysec', a power cut may cost the last second, or "
            "'always', before they are acknowledged."
        ),
    ] = "everysec"
    records_interval_s: Annotated[
        float,
        _setting(
            "Seconds after which a changed record lies beside the files, too, for `selftune rebuild`.", ge=0.1, le=3600
        ),
    ] = 5.0
    base_model: Annotated[
        str,
        _setting(
            "Base model: 'embedded' (SmolLM2-135M-Instruct from a Python package), a hub id, a folder, or the name "
            "of a model that was fully fine-tuned here."
        ),
    ] = "embedded"
    base_model_id: Annotated[
        str, _setting("Name that clients use for the base; empty: the hub id or the folder's name.")
    ] = ""
    merged_model: Annotated[
        str,
        _setting(
            "Fine-tuned model that this inference server serves merged into its base, and nothing else; empty: the "
            "base with every adapter.",
            pattern=r"\A(ft:.+)?\Z",
        ),
    ] = ""
    organization: Annotated[
        str, _setting("The third part of ft:… model names.", pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")
    ] = "selftune"
    max_file_bytes: Annotated[int, _setting("Largest file that may be uploaded, in bytes.", ge=1)] = 8 << 30
    upload_ttl_s: Annotated[int, _setting("Seconds in which an upload in parts has to be completed.", ge=1)] = 3600
    max_body_bytes: Annotated[int, _setting("Largest JSON request body, in bytes.", ge=1024)] = 32 << 20
    max_connections: Annotated[
        int, _setting("Connections that one API process keeps; 0: as many as it may have open files, less 256.", ge=0)
    ] = 0
    max_connections_each: Annotated[
        int, _setting("Connections of one address among them; 0 is no limit, as behind a proxy.", ge=0)
    ] = 0
    cors_origins: Annotated[
        list[Annotated[str, Meta(pattern=r"\A(\*|https?://[^/\s]+)\Z")]],
        _setting("Origins of pages in browsers that may ask, such as https://app.example.com: JSON list; none else."),
    ] = []
    lora_rank: Annotated[int, _setting("Rank of the adapters that are trained.", ge=1, le=512)] = 16
    max_lora_rank: Annotated[int, _setting("Largest rank that is served; every slot costs this much.", ge=1)] = 16
    max_loras: Annotated[int, _setting("Different adapters in one batch of the inference server.", ge=1)] = 4
    max_cpu_loras: Annotated[int, _setting("Adapters kept in the inference server's memory.", ge=1)] = 64
    adapter_queue_s: Annotated[
        float,
        _setting(
            "Seconds that a request may wait while other fine-tuned models have their turn; then it is 503.", gt=0
        ),
    ] = 30.0
    max_model_len: Annotated[int, _setting("Longest prompt plus answer, in tokens, training and serving.", ge=16)] = (
        2048
    )
    max_num_seqs: Annotated[int, _setting("Requests decoded together by one inference server.", ge=1)] = 16
    kv_cache_bytes: Annotated[int, _setting("Size of the key/value cache on a CPU, in bytes.", ge=1 << 20)] = 1 << 30
    inference_host: Annotated[str, _setting("Address that the inference server listens on.")] = "127.0.0.1"
    inference_port: Annotated[int, _port("Port of the inference server; 0 picks a free one.")] = 0
    inference_url: Annotated[
        str, _setting("Where gateway and trainer reach the inference server; empty: its address and port.")
    ] = ""
    internal_key: Annotated[str, _setting("Key between gateway and inference; empty: kept in the data folder.")] = ""
    key_secret: Annotated[
        str,
        _setting(
            "Secret under which API keys are hashed in the database, the same for every API host; empty: kept in the "
            "data folder.",
            pattern=r"\A(.{16,})?\Z",
        ),
    ] = ""
    threads: Annotated[int, _setting("Compute threads of training and inference; 0 takes every core.", ge=0)] = 0
    jobs_together: Annotated[
        int,
        _setting(
            "Jobs on the same base that a trainer with one process trains in turns; 1 is one after the other.", ge=1
        ),
    ] = 1
    trainer_processes: Annotated[
        int,
        _setting(
            "Processes that train one job together, each on a GPU or a share of the threads; 0: one for each GPU, "
            "else one.",
            ge=0,
        ),
    ] = 0
    trainer_memory_bytes: Annotated[
        int,
        _setting(
            "Memory that a job of this trainer may need, in bytes; larger jobs are left to others. "
            "0: what the machine has available, less half a gigabyte, or the GPU's.",
            ge=0,
        ),
    ] = 0
    lease_ttl_s: Annotated[float, _setting("Seconds after which a silent worker's job is given to another.", ge=2)] = (
        15.0
    )
    model_aliases: Annotated[
        dict[str, str],
        _setting("Names that clients may use for a model of this server, such as OpenAI's: JSON object."),
    ] = {}
    paused_as: Annotated[
        Literal["paused", "queued"],
        _setting("Status shown for a paused job: 'paused', or 'queued' for clients whose list of states is OpenAI's."),
    ] = "paused"
    result_files_base64: Annotated[
        bool, _setting("Give result files as base64 text, as OpenAI does; else as plain CSV.")
    ] = True
    webhook_allow_private: Annotated[
        bool, _setting("Let webhooks go to http:// and to addresses of this machine and of private networks.")
    ] = False
    outgoing_hosts: Annotated[
        list[Annotated[str, Meta(pattern=r"\A(none|(\*\.)?[A-Za-z0-9._:-]+)\Z")]],
        _setting(
            "Hosts that this server may call at others' word, for webhooks, hub ids, judges and Weights & Biases: "
            "names, *.example.com, or 'none'; JSON list; empty: every public host."
        ),
    ] = []
    webhook_retry_base_s: Annotated[
        float, _setting("Seconds until a webhook's second try; the later ones and the end are multiples of it.", gt=0)
    ] = 5.0
    project_requests_per_minute: Annotated[int, _setting("Requests a minute of a project; 0 is no limit.", ge=0)] = 0
    project_tokens_per_minute: Annotated[
        int, _setting("Tokens a minute, asked for and answered, of a project; 0 is no limit.", ge=0)
    ] = 0
    project_concurrent_jobs: Annotated[
        int, _setting("Unfinished fine-tuning jobs of a project; 0 is no limit.", ge=0)
    ] = 0
    project_eval_runs: Annotated[
        int, _setting("Eval runs of a project that are not at their end; 0 is no limit.", ge=0)
    ] = 100
    project_storage_bytes: Annotated[
        int,
        _setting("Bytes of files, fine-tuned models, stored answers and eval runs of a project; 0 is no limit.", ge=0),
    ] = 0
    refuse_foreign_ids: Annotated[
        bool,
        _setting(
            "Refuse OpenAI-Organization and OpenAI-Project headers with ids that are not this server's; "
            "else they are ignored."
        ),
    ] = False
    prefix_cache_sharing: Annotated[
        Literal["project", "all"],
        _setting(
            "Who shares cached beginnings of prompts: the keys of one 'project', or 'all', whose answering times then "
            "tell what others have asked."
        ),
    ] = "project"
    tool_call_parser: Annotated[
        str,
        _setting(
            "How the base writes tool calls: a parser of vLLM such as 'hermes'; 'auto' looks at its chat template, "
            "'off' refuses `tools` unless a call is forced.",
            min_length=1,
        ),
    ] = TOOLS_AUTO
    stored_completion_days: Annotated[
        int, _setting("Days that stored chat completions and responses are kept; 0 keeps them for ever.", ge=0)
    ] = 30
    batch_concurrency: Annotated[
        int, _setting("Requests of batches that one API process has under way at a time.", ge=1, le=512)
    ] = 8
    eval_concurrency: Annotated[
        int, _setting("Requests of eval runs that one API process has under way at a time.", ge=1, le=512)
    ] = 64
    eval_item_days: Annotated[
        int, _setting("Days that an ended eval run keeps the results of its rows; 0 keeps them for ever.", ge=0)
    ] = 90
    judge_endpoints: Annotated[
        dict[Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")], JudgeEndpoint],
        _setting(
            "Servers outside whose models graders may ask as name/model: JSON object of names, each with base_url and "
            "key_env or key_file."
        ),
    ] = {}
    judge_timeout_s: Annotated[float, _setting("Seconds that a judge may take to answer.", gt=0, le=3600)] = 120.0
    currency: Annotated[str, _setting("Currency of all prices.", pattern=r"\A[A-Z]{3}\Z")] = "USD"
    device_hour_price: Annotated[
        float, _setting("Price of an hour of training on one device; 0: none is known.", ge=0, le=1e6)
    ] = 0.0
    model_prices: Annotated[
        dict[str, TokenPrice],
        _setting(
            "Prices of what this server's models read and write: JSON object of names of models, of bases for all "
            "models on them, or '*', each with input, output and cached_input per million tokens."
        ),
    ] = {}
    hosted_prices: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=256)], TokenPrice],
        _setting("Prices of models elsewhere, to compare with: the same for their names."),
    ] = {}
    mlflow_tracking_uri: Annotated[
        str, _setting("MLflow server that jobs may write to, http://…; empty: none.", pattern=r"\A(https?://.+)?\Z")
    ] = ""
    metrics_host: Annotated[str, _setting("Address that metrics are read at; they name projects and models.")] = (
        "127.0.0.1"
    )
    api_metrics_port: Annotated[int, _port("Port of the API's metrics; 0 is none.")] = 9464
    trainer_metrics_port: Annotated[int, _port("Port of the trainer's metrics; 0 is none.")] = 9465
    inference_metrics_port: Annotated[
        int, _port("Port of the inference server's metrics, vLLM's and ours; 0 is none.")
    ] = 9466
    log_level: Annotated[str, _setting("Least level that is logged.", pattern=r"\A(DEBUG|INFO|WARNING|ERROR)\Z")] = (
        "INFO"
    )

    @property
    def home(self) -> Path:
        """The data folder, absolute."""
        return Path(self.data_dir).expanduser().resolve()

    @property
    def database_url(self) -> str:
        """Where Redis or Valkey is: as set, else the embedded one of this data folder."""
        return self.redis_url or embedded_valkey.url(Paths(self.home).valkey)

    @property
    def public_base_id(self) -> str:
        """The name that clients use for the base, under which the trainer registers and inference awaits it."""
        if is_fine_tuned(self.base_model):
            return self.base_model
        if self.base_model_id:
            return self.base_model_id
        if self.base_model == EMBEDDED:
            return EMBEDDED_ID
        folder = Path(self.base_model).expanduser()
        return folder.resolve().name if _is_folder(folder) else self.base_model

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        config: Path | None = None,
    ) -> Settings:
        """Merge file, environment and overrides. Raises InvalidRequest that names the setting."""
        given, from_env, from_file = cls._layers(overrides, environ, config)
        return _validated({**from_file, **from_env, **given})

    @classmethod
    def sources(
        cls,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        config: Path | None = None,
    ) -> dict[str, str]:
        """Tell where `load` takes each setting from: the command line, a variable, the file, the default."""
        given, from_env, from_file = cls._layers(overrides, environ, config)
        layers = (("the settings file", from_file), ("the environment", from_env), ("the command line", given))
        found = dict.fromkeys(cls.__struct_fields__, "the default")
        return found | {name: source for source, layer in layers for name in layer}

    @classmethod
    def _layers(
        cls, overrides: Mapping[str, Any] | None, environ: Mapping[str, str] | None, config: Path | None
    ) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        environ = os.environ if environ is None else environ
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        from_env = _from_env(environ)
        if _is_complete(environ):
            return given, from_env, {}
        data_dir = given.get("data_dir") or from_env.get("data_dir") or cls().data_dir
        named = config or (Path(environ[f"{ENV_PREFIX}CONFIG"]) if environ.get(f"{ENV_PREFIX}CONFIG") else None)
        return given, from_env, _from_file(named, Path(data_dir).expanduser() / "selftune.toml")

    def to_env(self) -> dict[str, str]:
        """Write every setting as a SELFTUNE_* variable, so that a child process reads exactly these.

        A variable that is changed afterwards counts as changed; the settings file does not count.
        """
        written = {f"{ENV_PREFIX}{name.upper()}": _as_text(getattr(self, name)) for name in self.__struct_fields__}
        return written | {_COMPLETE: "complete"}


def _is_folder(path: Path) -> bool:
    """Tell whether it is one, as far as this process may look."""
    try:
        return path.is_dir()
    except PermissionError:
        return False


def _as_text(value: Any) -> str:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else str(value)


def _from_env(environ: Mapping[str, str]) -> dict[str, str]:
    known = {f"{ENV_PREFIX}{name.upper()}": name for name in Settings.__struct_fields__}
    empty_counts = _is_complete(environ)
    return {known[key]: value for key, value in environ.items() if key in known and (value != "" or empty_counts)}


def _is_complete(environ: Mapping[str, str]) -> bool:
    return environ.get(_COMPLETE) == "complete"


def _from_file(named: Path | None, fallback: Path) -> dict[str, Any]:
    path = named or fallback
    try:
        if named is None and not path.exists():
            return {}
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"settings file {path}: {error}") from error


def _validated(values: dict[str, Any]) -> Settings:
    values = {name: _parsed(name, value) for name, value in values.items()}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
        _check_database_url(settings.redis_url)
        return settings
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        raise InvalidRequest(f"setting {place.rstrip('`')}: {problem}" if place else f"settings: {problem}") from error


def _check_database_url(url: str) -> None:
    """Raises InvalidRequest for what no client could read, without what it says: it may hold a password."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("redis", "rediss", "unix") and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if url and not known:
        raise InvalidRequest(
            "setting redis_url: it is not redis://…, rediss://… or unix://…; signs such as / in a password are written "
            "as %2F"
        ) from None


def _parsed(name: str, value: Any) -> Any:
    """Read a table that came as text, from the environment or the command line."""
    if not isinstance(value, str) or not isinstance(getattr(_DEFAULTS, name, None), dict | list):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"setting {name}: {error}; write it as JSON") from error


_DEFAULTS = Settings()


def describe() -> list[tuple[str, str, object]]:
    """List (name, description, default) of every setting, in order."""
    schema = msgspec.json.schema_components([Settings], ref_template="{name}")[1]["Settings"]["properties"]
    return [
        (name, schema[name].get("description", ""), getattr(_DEFAULTS, name)) for name in Settings.__struct_fields__
    ]
