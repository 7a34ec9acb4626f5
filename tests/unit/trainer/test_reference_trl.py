"""Loss and gradients of one batch equal those of TRL's trainers: SFT, DPO, KTO, ORPO, reward models.

Both get text or tokens that come to the same tokens as ours: TRL's assistant_only_loss needs generation markers in the
chat template, which few templates have, so SFTTrainer gets tokens and labels; DPOTrainer takes no tokens, so it gets
rendered text, whose answers end where ours do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# TRL would call the Hub when it is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from services.trainer.data.chat import Example
from services.trainer.data.labelled import Labelled
from services.trainer.data.pairs import Pair
from services.trainer.protocol import REFERENCE_FILE, TrainSpec
from services.trainer.training.kto import Kto
from services.trainer.training.model import build_model
from services.trainer.training.objectives import Preference, Supervised
from services.trainer.training.orpo import Orpo
from services.trainer.training.reading import Reader
from services.trainer.training.references import with_reference
from services.trainer.training.reward import BradleyTerry
from services.trainer.training.run_job import load_data, load_labelled, load_pairs, make_kto
from tests.unit.trainer import reference
from tests.unit.trainer.reference import Gradients, Move, assert_equal
from tests.unit.trainer.test_reference import BATCH, ours
from tests.unit.trainer.test_trainer_dpo import dpo_spec, never
from tests.unit.trainer.test_trainer_kto import kto_spec
from tests.unit.trainer.tiny import labelled_rows, make_spec, write_rows
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


class Gradient(TrainerCallback):  # type: ignore[misc]  # mypy skips transformers
    """Keeps what the optimiser is about to apply."""

    def __init__(self) -> None:
        self.found: Gradients = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in reference.trainable(model).items() if p.grad is not None}


def first_step(trainer: Any, move: Move = reference.move_away_from_base) -> tuple[float, Gradients]:
    """Train for one step, and return the loss and the gradients that went into it."""
    move(reference.trainable(trainer.model))
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


def test_labelled_step_is_that_of_trl_s_kto_trainer(base: Path, tmp_path: Path) -> None:
    batch = write_rows(tmp_path / "batch.jsonl", labelled_rows(BATCH))
    spec = kto_spec(
        base, tmp_path, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7, training_path=str(batch)
    )  # fmt: skip
    kto = make_kto(spec, Reader(build_model(spec)))
    rows = with_reference(load_labelled(spec), kto, tmp_path / REFERENCE_FILE, never).train
    tokenizer = AutoTokenizer.from_pretrained(base)
    written = [
        {"prompt": tokenizer.decode(row.prompt), "completion": tokenizer.decode(ids(row.example)[len(row.prompt) :]),
         "label": row.is_desirable}
        for row in rows
    ]  # fmt: skip
    trainer = KTOTrainer(
        reference.plain_model(spec),
        args=KTOConfig(str(tmp_path / "trl"), beta=0.3, desirable_weight=1.5, undesirable_weight=0.7, **PLAIN),
        train_dataset=Dataset.from_list(written), processing_class=tokenizer,
    )  # fmt: skip
    prepared = [[*row["prompt_ids"], *row["KL_completion_ids"]] for row in trainer.train_dataset]
    assert prepared == [ids(row.mismatched) for row in rows], "both read the same tokens"
    moves = [partial(reference.move_a_little, sign=sign) for sign in (1.0, -1.0)]
    up = next(move for move in moves if diverged(kto, rows, move) > 0.01)
    assert_equal(ours(kto, rows, up), first_step(trainer, up))


def diverged(kto: Kto, rows: Sequence[Labelled], move: Move) -> float:
    move(kto.reader.model.trainable())
    return kto.measure(rows, backward=False).divergence or 0.0


def test_odds_ratio_step_is_that_of_trl_s_orpo_trainer(base: Path, tmp_path: Path) -> None:
    spec = dpo_spec(base, tmp_path, method="orpo", beta=0.3)
    pairs = load_pairs(spec).train[:BATCH]
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = ORPOTrainer(
        reference.plain_model(spec),
        args=ORPOConfig(str(tmp_path / "trl"), beta=0.3, **{**PLAIN, "max_length": 128}),
        train_dataset=Dataset.from_list([written(pair, tokenizer) for pair in pairs]), processing_class=tokenizer,
    )  # fmt: skip
    assert [row["chosen_input_ids"] for row in trainer.train_dataset] == [ids(pair.chosen) for pair in pairs]
    assert_equal(ours(Orpo(Reader(build_model(spec)), spec.beta), pairs), first_step(trainer))


def test_scoring_step_is_that_of_trl_s_reward_trainer(base: Path, tmp_path: Path) -> None:
    spec = dpo_spec(base, tmp_path, method="reward")
    pairs = load_pairs(spec).train[:BATCH]
    trainer = RewardTrainer(
        classifier(spec), args=RewardConfig(str(tmp_path / "trl"), **PLAIN),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": ids(pair.chosen), "rejected_ids": ids(pair.rejected)} for pair in pairs]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
    )  # fmt: skip
    loss, found = first_step(trainer)
    head = "base_model.model.score.modules_to_save.default.weight"
    assert_equal(
        ours(BradleyTerry(Reader(build_model(spec))), pairs),
        (loss, {name.replace(head, "score"): gradient for name, gradient in found.items()}),
    )


def classifier(spec: TrainSpec) -> Any:
    """A base with a score in place of its output layer, and an adapter; the score is trained too."""
    model = AutoModelForSequenceClassification.from_pretrained(
        spec.base_folder, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    )
    config = LoraConfig(
        r=spec.rank, lora_alpha=int(spec.alpha), target_modules=list(spec.targets), lora_dropout=0.0,
        task_type="SEQ_CLS", modules_to_save=["score"],
    )  # fmt: skip
    return get_peft_model(model, config)


def ids(example: Example) -> list[int]:
    return [int(token) for token in example.tokens]


def written(pair: Pair, tokenizer: Any) -> dict[str, str]:
    n_prompt = len(pair.prompt)
    return {
        "prompt": tokenizer.decode(pair.prompt),
        "chosen": tokenizer.decode(ids(pair.chosen)[n_prompt:]),
        "rejected": tokenizer.decode(ids(pair.rejected)[n_prompt:]),
    }
