"""A base whose every weight was trained, as a folder of the base's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from services.trainer.base.weights import whole_digest
from services.trainer.standalone import ExportRefused
from services.trainer.standalone.weights import BaseWeights
from services.trainer.standalone.whole_model import WholeModel

_OUTPUT_LAYER = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"
_COMPUTED = ".inv_freq"
"""Tensors in the files of some older models that are no weights."""


class TrainedWeights(BaseWeights):
    """The base's files with the trained values of every tensor."""

    def __init__(self, base: Path, trained: Mapping[str, Tensor]) -> None:
        """Check that both have the same tensors. Raises ExportRefused naming one that the other lacks."""
        super().__init__(base)
        self._trained = dict(trained)
        embedding = next((name for name in trained if name.endswith(_EMBEDDING)), None)
        if self.ties_output and embedding and _OUTPUT_LAYER not in trained:
            self._trained[_OUTPUT_LAYER] = trained[embedding]  # some files hold it a second time
        elif self.ties_output:
            raise ExportRefused(
                f"The base says that its output layer is its embedding, but has {_OUTPUT_LAYER} of its own, or an "
                "embedding of another name; programs would load it in different ways. Train an adapter instead.",
                code="unsupported_base_model",
            )
        stored = {name for name in self.tensors if not name.endswith(_COMPUTED)}
        strange = stored - self._trained.keys() | trained.keys() - stored
        if strange:
            raise ExportRefused(
                f"The base's files and the model in memory do not name {min(strange)} alike; its weights cannot be "
                "written as they were read. Train an adapter instead, with finetuning_type 'lora'.",
                code="unsupported_base_model",
            )

    def read(self, file: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().read(file):
            yield name, self._trained.get(name, tensor).cpu()


def write_whole(trained: Mapping[str, Tensor], base: Path, folder: Path) -> str:
    """Write the model into `folder`, each tensor in the type it has in the base's files; returns `whole_digest`.

    Raises ExportRefused, OSError.
    """
    WholeModel(TrainedWeights(base, trained), base, None).write(folder)
    return whole_digest(folder)
