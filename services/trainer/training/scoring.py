"""What a reward model says of conversations, from its folder alone.

The folder is PEFT's form of an adapter for transformers' sequence classification with one label: `adapter_config.json`
with the task SEQ_CLS, and in `adapter_model.safetensors` the LoRA matrices and the head, `SCORE_NAME`, of shape (1,
hidden size) in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from msgspec import Struct
from transformers import AutoTokenizer

from services.trainer.data.chat import tokenize_rows
from services.trainer.failures import TrainingFailed
from services.trainer.protocol import TrainSpec
from services.trainer.training.model import TrainableModel, build_model
from services.trainer.training.reading import Reader
from services.trainer.training.reward import read_scores
from shared.adapters import CONFIG_NAME
from shared.chat_data import ChatExample, Message


class _Config(Struct, frozen=True, kw_only=True):
    """What adapter_config.json says about a reward model's form."""

    task_type: str | None = None
    r: int
    lora_alpha: float
    use_rslora: bool = False
    target_modules: list[str]


class Scorer:
    """A reward model in memory."""

    def __init__(self, model: TrainableModel, tokenizer: Any, *, max_length: int) -> None:
        self._reader = Reader(model)
        self._tokenizer = tokenizer
        self._max_length = max_length

    @classmethod
    def load(
        cls,
        base_folder: Path,
        adapter_folder: Path,
        *,
        max_length: int = 2048,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> Scorer:
        """Put the adapter on its base; `max_length` is a conversation's in tokens.

        Raises TrainingFailed for a folder that is no reward model, or not there.
        """
        config = _read_config(adapter_folder / CONFIG_NAME)
        spec = TrainSpec(
            job_id="", base_id="", base_folder=str(base_folder), base_fingerprint="", adapters_folder="",
            training_path="", n_epochs=1, batch_size=1, learning_rate_multiplier=1.0, seed=0, method="reward",
            rank=config.r, alpha=config.lora_alpha, use_rslora=config.use_rslora,
            targets=tuple(config.target_modules), parent_folder=str(adapter_folder), dtype=dtype, max_length=max_length,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True, trust_remote_code=False)
        return cls(build_model(spec), tokenizer, max_length=max_length)

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Score the last message, the assistant's, of each conversation; only differences between scores mean anything.

        Raises InvalidTrainingData that counts conversations from 1: one that the template cannot write, or is too long.
        """
        rows = [(number, ChatExample(messages=list(messages))) for number, messages in enumerate(conversations, 1)]
        examples = tokenize_rows(rows, self._tokenizer, max_length=self._max_length, param="conversations")
        self._reader.model.module.eval()
        found: dict[int, float] = {}
        with torch.no_grad():
            for piece in self._reader.pieces(examples):
                found |= zip([e.line for e in piece], read_scores(self._reader, piece).tolist(), strict=True)
        return [found[number] for number, _ in rows]


def _read_config(path: Path) -> _Config:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, msgspec.MsgspecError) as error:
        raise TrainingFailed(f"The reward model {path.parent.name} cannot be read: {error}") from error
    if config.task_type != "SEQ_CLS":
        raise TrainingFailed(f"{path.parent.name} is no reward model.")
    return config
