"""A job's files as rows to train on: mapped where they were tokenised before, else tokenised now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from services.trainer.data.cache import TokenCache, tokenize_in_memory
from services.trainer.data.table import TokenTable
from services.trainer.failures import TrainingFailed
from shared.token_cache import Format
from shared.training_data import Method, format_of


class TokenSource:
    """Tokenises a base's files, or finds them in the folder of tokens; with "" for a folder nothing is kept.

    `is_alone` says that this process has one thread and may be forked. Raises TrainingFailed for a base that has no
    chat template as soon as one is needed.
    """

    def __init__(self, base_folder: str, tokens_folder: str, method: Method, *, is_alone: bool = False) -> None:
        self._base_folder = Path(base_folder)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            base_folder, local_files_only=True, trust_remote_code=False
        )
        self._method = method
        self._cache = (
            TokenCache(Path(tokens_folder), self._base_folder, self._tokenizer, is_alone=is_alone)
            if tokens_folder
            else None
        )

    def table(self, path: str, param: str) -> tuple[str, TokenTable]:
        """Return the key under which a file's tokens are kept, and the tokens. Raises InvalidTrainingData."""
        file = Path(path)
        format_ = format_of(file, self._method)
        self._check(format_)
        if self._cache is None:
            return "", tokenize_in_memory(file, format_, self._tokenizer, param)
        key = self._cache.key(file, format_)
        return key, self._cache.find(key) or self._cache.build(key, file, format_, param)

    def _check(self, format_: Format) -> None:
        if format_ in ("chat", "preference", "labelled") and not self._tokenizer.chat_template:
            raise TrainingFailed(
                f"The base model in {self._base_folder.name} has no chat template, so it cannot be fine-tuned on "
                "conversations; it can be on lines with 'prompt' and 'completion', or with 'text'.",
                code="unsupported_base_model",
            )
