"""TRL's GRPOTrainer with transformers' generate, which is what it has on a CPU; a process of its own.

Its loss is the one that ours has (`dapo`, a mean over tokens), its other settings are ours where it has them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.reinforcement.task import Answer, Work, counted, read_work, reward


def train(work: Work) -> Answer:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    ends: list[float] = []

    class Times(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    rows = [{"prompt": row["messages"], "answer": row["answer"]} for row in work.rows()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            peft_model(work),
            close,
            args=config(work, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(work.base),
            callbacks=[Times()],
        )
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(ends) == len(rewards) == work.total_steps
    return Answer(seconds=counted(ends, work), rewards=rewards, versions=versions())


def close(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Reward as GRADER does."""
    return [reward(said[0]["content"], wanted) for said, wanted in zip(completions, answer, strict=True)]


def config(work: Work, folder: str) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        folder, loss_type="dapo", beta=work.kl_coefficient, epsilon=work.clip_low, epsilon_high=work.clip_high,
        use_bias_correction_kl=False, num_generations=work.group, max_completion_length=work.max_completion_tokens,
        temperature=1.0, per_device_train_batch_size=work.prompts * work.group, gradient_accumulation_steps=1,
        max_steps=work.total_steps, learning_rate=work.learning_rate, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=1.0, optim="adamw_torch", seed=work.seed, shuffle_dataset=False, bf16=False,
        gradient_checkpointing=False, use_cpu=True, save_strategy="no", logging_steps=1, report_to=[],
        disable_tqdm=True,
    )  # fmt: skip


def peft_model(work: Work) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.float32)
    torch.manual_seed(work.seed)
    lora = LoraConfig(
        r=work.rank, lora_alpha=work.alpha, lora_dropout=0.0, target_modules=list(work.targets), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(base, lora)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "transformers", "peft", "trl")}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(asdict(train(read_work(Path(sys.argv[1]))))))
