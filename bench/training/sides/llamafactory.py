"""LLaMA-Factory's own command, run_exp, on rows that are tokenised already, in float32 and without checkpointing.

Its recipes ask for bf16 and turn checkpointing on; both are slower on such a CPU. It runs in its own environment: see
rivals.sh.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.training.work import Answer, Clock, Work, run


def train(work: Work) -> Answer:
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    _stand_in_for("torchaudio")
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    clock = Clock(work)

    class Times(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                clock.answer.losses.append(float(logs["loss"]))

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    with tempfile.TemporaryDirectory() as folder:
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in work.read_tokens()]
        DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(f"{folder}/tokens")
        run_exp(recipe(work, Path(folder)), callbacks=[Times()])
    return clock.finish()


def _stand_in_for(module: str) -> None:
    """LLaMA-Factory imports torchaudio for sound, and PyPI's builds of it do not load beside PyTorch for the CPU."""
    empty = ModuleType(module)
    empty.__spec__ = ModuleSpec(module, None)
    sys.modules[module] = empty


def recipe(work: Work, folder: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": work.base, "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": work.rank, "lora_alpha": work.alpha, "lora_dropout": 0.0, "lora_target": ",".join(work.targets),
        "dataset": "tokenised already", "tokenized_path": str(folder / "tokens"), "template": "default",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True, "bf16": False, "use_cpu": True,
        "output_dir": str(folder / "out"), "per_device_train_batch_size": work.batch_size,
        "gradient_accumulation_steps": 1, "max_steps": work.total_steps, "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "optim": "adamw_torch", "seed": work.seed,
        "save_strategy": "no", "logging_steps": 1, "report_to": "none",
    }  # fmt: skip


if __name__ == "__main__":
    run(train, "torch", "transformers", "peft", "llamafactory")
