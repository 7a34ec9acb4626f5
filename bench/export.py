"""What exporting a fine-tuned model costs: time, size and peak memory of each form.

    python -m bench.export [--base FOLDER]

A LoRA adapter of rank 16 on all seven kinds of linear layers, of random numbers, on the embedded base or another.
Each form is made by a process of its own, `python -m services.trainer.standalone`, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.training.__main__ import embedded_base
from shared.adapters import CONFIG_NAME, SERVED_MODULES, WEIGHTS_NAME, linear_shapes

RANK = 16
FORMS = {
    "merged, as the base": ("--merge",),
    "merged, bfloat16": ("--merge", "--dtype=bfloat16"),
    "GGUF f16": ("--gguf=f16",),
    "GGUF q8_0": ("--gguf=q8_0",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="folder of a base model; the embedded one if left out")
    base = parser.parse_args().base or embedded_base()
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; base {size / 1e6:.0f} MB")
    print(f"{'form':<20} {'s':>6} {'MB':>7} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        adapter = random_adapter(base, Path(folder) / "random")
        for name, options in FORMS.items():
            to = Path(folder) / ("out.gguf" if "GGUF" in name else name.replace(" ", "-"))
            seconds, peak_mb = measure(adapter, base, to, *options)
            print(f"{name:<20} {seconds:>6.1f} {size_of(to) / 1e6:>7.0f} {peak_mb:>8.0f}", flush=True)
            if to.is_file():
                to.unlink()


def measure(adapter: Path, base: Path, to: Path, *options: str) -> tuple[float, float]:
    """Export, and return seconds and the process's peak of resident memory in MB, pages of files included."""
    command = [sys.executable, "-m", "services.trainer.standalone", f"--to={to}", f"--base={base}", *options]
    begun = time.monotonic()
    process = subprocess.Popen([*command, str(adapter)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - begun, usage.ru_maxrss / 1e3


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))


def random_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter whose halves are both random."""
    folder.mkdir()
    tensors = {}
    for module, (out, inner) in linear_shapes(base).items():
        if module.rpartition(".")[2] in SERVED_MODULES:
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, inner) / inner**0.5
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, RANK) / 100
    save_file(tensors, folder / WEIGHTS_NAME)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": sorted(SERVED_MODULES)}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
