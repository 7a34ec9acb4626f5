"""Loss and gradients of one batch equal those of TRL's SFTTrainer and DPOTrainer.

Both get text or tokens that come to the same tokens as ours: TRL's assistant_only_loss needs generation markers in the
chat template, which few templates have, so SFTTrainer gets tokens and labels; DPOTrainer takes no tokens, so it gets
rendered text, whose answers end where ours do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # TRL would call the Hub when it is imported

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from services.trainer.data.chat import Example
from services.trainer.data.pairs import Pair
from services.trainer.protocol import REFERENCE_FILE
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Preference, Supervised
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.run_job import load_data, load_pairs
from tests.unit.trainer import reference
from tests.unit.trainer.reference import Gradients, assert_equal
from tests.unit.trainer.test_reference import BATCH, ours
from tests.unit.trainer.test_trainer_dpo import dpo_spec, never
from tests.unit.trainer.tiny import make_spec
from tests.unit.trainer.tiny_models import save_tiny_model

PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential", "bf16": False,
    "gradient_checkpointing": False, "report_to": [], "use_cpu": True, "disable_tqdm": True, "max_length": None,
    "max_steps": 1, "max_grad_norm": 0.0, "save_strategy": "no",
}  # fmt: skip
"""TRL's defaults but for precision, which is to be compared, for order, which is to be the same, and for clipping."""


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), request.param)


class Gradient(TrainerCallback):
    """Keeps what the optimiser is about to apply."""

    def __init__(self) -> None:
        self.found: Gradients = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in reference.trainable(model).items() if p.grad is not None}


def first_step(trainer: Any) -> tuple[float, Gradients]:
    """Train for one step, and return the loss and the gradients that went into it."""
    reference.move_away_from_base(reference.trainable(trainer.model))
    gradient = Gradient()
    trainer.add_callback(gradient)
    return trainer.train().training_loss, gradient.found


def test_supervised_step_is_that_of_trl_s_sft_trainer(base: Path, tmp_path: Path) -> None:
    spec = make_spec(base, tmp_path)
    rows = load_data(spec).train[:BATCH]
    labelled = [
        {"input_ids": ids(row),
         "labels": [t if flag else -100 for t, flag in zip(ids(row), row.supervised, strict=True)]}
        for row in rows
    ]  # fmt: skip
    trainer = SFTTrainer(
        reference.plain_model(spec), SFTConfig(str(tmp_path / "trl"), **PLAIN),
        train_dataset=Dataset.from_list(labelled), processing_class=AutoTokenizer.from_pretrained(base),
    )  # fmt: skip
    assert_equal(ours(Supervised(Reader(build_model(spec))), rows), first_step(trainer))


@pytest.mark.parametrize("precomputed", [True, False], ids=["reference known", "reference read along"])
def test_preference_step_is_that_of_trl_s_dpo_trainer(base: Path, tmp_path: Path, precomputed: bool) -> None:
    spec = dpo_spec(base, tmp_path, beta=0.3)
    preference = Preference(Reader(build_model(spec)), spec.beta)
    pairs = with_reference(load_pairs(spec), preference, tmp_path / REFERENCE_FILE, never).train[:BATCH]
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = DPOTrainer(
        reference.plain_model(spec),
        args=DPOConfig(str(tmp_path / "trl"), beta=0.3, precompute_ref_log_probs=precomputed, **PLAIN),
        train_dataset=Dataset.from_list([written(pair, tokenizer) for pair in pairs]), processing_class=tokenizer,
    )  # fmt: skip
    prepared = [[*row["prompt_ids"], *row["chosen_ids"]] for row in trainer.train_dataset]
    assert prepared == [ids(pair.chosen) for pair in pairs], "both read the same tokens"
    assert_equal(ours(preference, pairs), first_step(trainer))


def ids(example: Example) -> list[int]:
    return [int(token) for token in example.tokens]


def written(pair: Pair, tokenizer: Any) -> dict[str, str]:
    n_prompt = len(pair.prompt)
    return {
        "prompt": tokenizer.decode(pair.prompt),
        "chosen": tokenizer.decode(ids(pair.chosen)[n_prompt:]),
        "rejected": tokenizer.decode(ids(pair.rejected)[n_prompt:]),
    }
