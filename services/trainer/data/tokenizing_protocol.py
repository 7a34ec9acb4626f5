"""What the worker and the tokenising process say to each other: a Request, and one line in answer."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from services.trainer.memory.estimate import Piece
from services.trainer.protocol import Failed
from shared.overlong import Overlong
from shared.schemas.methods import SupervisedHyperparameters
from shared.schemas.options import TrainingOptions
from shared.training_data import Method


class Request(Struct, frozen=True, kw_only=True):
    """What to tokenise, and how long a row may be."""

    base_folder: str
    tokens_folder: str
    method: Method
    max_length: int
    overlong: Overlong
    training_path: str
    validation_path: str | None = None
    requested: SupervisedHyperparameters = SupervisedHyperparameters()
    options: TrainingOptions = TrainingOptions()
    """How the rows will be put together, for what they need of memory."""


class FileTokens(Struct, frozen=True, kw_only=True):
    """One file's tokens, and what the policy for over-long rows leaves of them."""

    key: str
    rows: int
    """Rows to train on."""
    n_desirable: int = 0
    """Rows with the label true; without labels, all."""
    n_dropped: int = 0
    n_cut: int = 0
    dropped_lines: list[int] = []
    cut_lines: list[int] = []
    """The first of them."""


class Tokenized(Struct, frozen=True, kw_only=True, tag="tokenized"):
    training: FileTokens
    validation: FileTokens | None = None
    heaviest: Piece | None = None
    """What will need the most memory at once."""


answer_decoder: msgspec.json.Decoder[Tokenized | Failed] = msgspec.json.Decoder(Tokenized | Failed)
request_decoder = msgspec.json.Decoder(Request)
