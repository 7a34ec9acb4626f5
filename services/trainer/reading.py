"""Running examples through a model in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.trainer.data.batches import Batch, R, collate, collate_packed, micro_batches, packs, shared_prefix
from services.trainer.data.chat import Example
from services.trainer.failures import TrainingFailed
from services.trainer.model import LoraModel


class Reader:
    """Pads examples, or packs them, and lets the model read them; `most_rows` at once at most.

    Raises TrainingFailed for packing on a model whose layers do not keep packed examples apart.
    """

    def __init__(self, model: LoraModel, *, packing: bool = False, most_rows: int | None = None) -> None:
        if packing and not model.can_pack:
            raise TrainingFailed(
                "The base model has layers that cannot keep packed rows apart; leave out selftune.packing.",
                code="unsupported_option",
                param="selftune.packing",
            )
        self.model = model
        self.packing = packing
        self.most_rows = most_rows
        self.shares_prefixes = model.can_share_prefixes and not packing

    def pieces(self, rows: Sequence[R]) -> list[list[R]]:
        """Cut rows into pieces to be read at once; each row is in one piece, with all its sides."""
        pieces = packs(rows) if self.packing else micro_batches(rows)
        return [part for piece in pieces for part in self._capped(piece)]

    def _capped(self, piece: list[R]) -> list[list[R]]:
        most = self.most_rows or len(piece)
        return [piece[at : at + most] for at in range(0, len(piece), most)]

    def read(self, examples: Sequence[Example]) -> tuple[Tensor, Batch]:
        """Return hidden_ND at the places whose next token is learnt, and the batch that says what is learnt there."""
        prefix = shared_prefix(examples) if self.shares_prefixes else []
        batch = collate_packed(examples) if self.packing else collate(examples, skip=len(prefix))
        batch = batch.to(self.model.device)
        hidden_BTD = self.model.hidden_states(batch.inputs_BT, prefix, positions_BT=batch.positions_BT)
        return hidden_BTD[batch.rows_N, batch.columns_N], batch
