"""Running examples through a model in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.trainer.data.batches import Batch, collate, collate_packed
from services.trainer.data.chat import Example
from services.trainer.data.cutting import R, capped, flat_pieces, micro_batches, packs
from services.trainer.data.segments import FlatBatch, lay_out
from services.trainer.failures import TrainingFailed
from services.trainer.training.model import TrainableModel


class Reader:
    """Lets the model read examples, `most_rows` at once at most: flat on the fast path, else padded or packed.

    Raises TrainingFailed for packing on a model whose layers do not keep packed examples apart.
    """

    def __init__(self, model: TrainableModel, *, packing: bool = False, most_rows: int | None = None) -> None:
        if packing and not model.can_pack:
            raise TrainingFailed(
                "The base model has layers that cannot keep packed rows apart; leave out selftune.packing.",
                code="unsupported_option",
                param="selftune.packing",
            )
        self.model = model
        self.packing = packing
        self.most_rows = most_rows
        self.shares = model.can_share
        """Whether tokens that rows begin alike with are read once; the fast path alone does it."""

    @property
    def is_fast(self) -> bool:
        return not self.model.plain_because

    def pieces(self, rows: Sequence[R]) -> list[list[R]]:
        """Cut rows into pieces to be read at once; each row is in one piece, with all its sides."""
        pieces = flat_pieces(rows) if self.is_fast else packs(rows) if self.packing else micro_batches(rows)
        return capped(pieces, self.most_rows)

    def read(self, examples: Sequence[Example]) -> tuple[Tensor, Batch | FlatBatch]:
        """Return hidden_ND at the places whose next token is learnt, and the batch that says what is learnt there."""
        if self.is_fast:
            flat = lay_out(examples, share=self.shares).to(self.model.device)
            return self.model.read_flat(flat).index_select(0, flat.places_N), flat
        batch = (collate_packed(examples) if self.packing else collate(examples)).to(self.model.device)
        hidden_BTD = self.model.read_padded(batch.inputs_BT, batch.positions_BT)
        return hidden_BTD[batch.rows_N, batch.columns_N], batch
