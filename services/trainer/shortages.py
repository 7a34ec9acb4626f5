"""Memory or disk that is not enough, told from other errors, and what to lower. No torch: the worker asks, too."""

from __future__ import annotations

import errno
import math
import re
import signal

from services.trainer.failures import DiskFull, OutOfMemory, ProcessDied, TrainingFailed
from services.trainer.protocol import TrainSpec

_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|alloc_cpu", re.IGNORECASE)
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors is written in Rust, which gives the number in the text.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_WORDS = {
    "activations": "what the layers keep of each token in a piece of a batch",
    "weights": "the base's weights",
    "adapter": "the adapter and its optimizer",
    "optimizer": "the weights' gradient and optimizer",
    "logits": "the logits",
    "runtime": "the libraries",
}


def shortage(error: BaseException, spec: TrainSpec) -> TrainingFailed | None:
    """Say of an error that ended a training what was short; None if it was something else."""
    if is_out_of_memory(error):
        return OutOfMemory(f"The training ran out of memory. {advice(spec)}")
    if is_disk_full(error):
        return _disk_full()
    return None


def files_failed(error: OSError) -> TrainingFailed:
    """Say of an error in the worker itself, outside the training process, why the job ends."""
    if is_disk_full(error):
        return _disk_full()
    reason = error.strerror or type(error).__name__
    return TrainingFailed(f"The trainer could not work with the job's files or processes: {reason}.")


def _disk_full() -> DiskFull:
    return DiskFull(
        "The trainer's disk is full, so the training could not be saved. The resume points written before are "
        "whole; free some space in the data folder and create the job again."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Recognise Python's own error, CUDA's, and torch's on a CPU, which is a RuntimeError with a text."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_disk_full(error: BaseException) -> bool:
    """Recognise a full disk, a quota, and a file that may not grow, also behind a library's own error."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    numbers = _OS_ERROR.findall(str(error)) if type(error).__name__ == "SafetensorError" else []
    return any(int(number) in _DISK_ERRORS for number in numbers)


def advice(spec: TrainSpec) -> str:
    """Name what a job can lower: first what needs more than half, then the cheapest, as pieces change no result."""
    ways = []
    is_full = spec.finetuning_type == "full"
    if is_full:
        ways.append("set selftune.finetuning_type to lora")
    can_be_quantized = spec.quantization == "none" and not is_full
    if can_be_quantized and _mostly(spec, "weights"):
        ways.append("set selftune.quantization to nf4")
    if _mostly(spec, "adapter"):
        ways.append(f"lower selftune.rank (now {spec.rank})")
    if spec.gradient_accumulation_steps < spec.batch_size:
        ways.append(
            f"raise selftune.gradient_accumulation_steps (now {spec.gradient_accumulation_steps}; up to the batch_size "
            f"of {spec.batch_size}, with the same result)"
        )
    elif spec.batch_size > 1:
        ways.append(f"lower batch_size (now {spec.batch_size})")
    ways.append(f"use shorter rows, or lower selftune.max_length (now {spec.max_length})")
    if can_be_quantized and not _mostly(spec, "weights"):
        ways.append("set selftune.quantization to nf4")
    return f"{_expected(spec)}To need less: {'; '.join(ways)}."


def _mostly(spec: TrainSpec, part: str) -> bool:
    """Whether a part is more than half of the estimate."""
    return 2 * spec.memory_parts.get(part, 0) > (spec.estimated_memory_bytes or math.inf)


def _expected(spec: TrainSpec) -> str:
    """Say what the job was estimated to need, and most of it for what."""
    if not spec.memory_parts:
        return ""
    largest = max(spec.memory_parts, key=lambda name: spec.memory_parts[name])
    total = sum(spec.memory_parts.values())
    return (
        f"It was estimated to need {total / 1e9:.1f} GB, {spec.memory_parts[largest] / 1e9:.1f} GB of them for "
        f"{_WORDS.get(largest, largest)}. "
    )


def died(status: int, spec: TrainSpec) -> ProcessDied:
    """Say how a training process ended that said nothing; `status` is negative for a signal."""
    silent = " and without a result" if status >= 0 else ""
    return ProcessDied(f"The training process {ending(status)}{silent}.{remedy(status, spec)}")


def ending(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by signal {-status} ({signal.Signals(-status).name})"


def remedy(status: int, spec: TrainSpec) -> str:
    """Say what most often is behind SIGKILL, and what helps; nothing of other endings."""
    return f" The machine probably ran out of memory. {advice(spec)}" if status == -signal.SIGKILL else ""
