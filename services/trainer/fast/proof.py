"""Does the fast path compute what the model computes? Tried on a few rows before training, or else it is not taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from services.trainer.data.batches import collate
from services.trainer.data.chat import Example
from services.trainer.data.segments import lay_out
from services.trainer.fast.attention import Segments
from services.trainer.fast.install import Installation

if TYPE_CHECKING:
    from services.trainer.training.model import TrainableModel

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
"""How far hidden states and gradients may be apart, as a share of their norm: rounding differs with the order."""
_WHOLE_SLACK = 10
"""By how much more gradients of a whole model's norms may be apart: sums in which nearly everything cancels.

The worst of SmolLM2-135M's is 2.6e-4 from the true value when transformers computes it, in float32.
"""
_ADAPTER_SCALE = 0.25
"""Standard deviation of what an adapter matrix makes of inputs of one.

With 1 a trained model turns chaotic, and rounding alone grows past the tolerance (1.8e-4 against 1e-5 with this,
SmolLM2-135M); with 0 half of the adapter would hide.
"""
_SHARED_TOKENS = 6
_OWN_TOKENS = (4, 2, 7)
_REFUSALS = (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError, KeyError)

log = structlog.get_logger()


def install_if_equal(model: TrainableModel) -> str:
    """Put the model on the fast path; returns why not, empty when it is. A model that is not is as it was before."""
    if not model.can_pack:
        return f"it has layers of other kinds than attention: {', '.join(sorted(model.layer_kinds))}"
    if getattr(model.module.config, "attention_dropout", 0):
        return "it drops attention weights while it trains"
    installation = Installation(model.module, model.module.config, model.dtype)
    try:
        with _moved_adapter(model):
            model.module.eval()
            plain = _measure(model, _read_plain)
            installation.install()
            problem = _compare(model, plain)
            if not model.can_share:
                _train_once(model)
    except _REFUSALS as error:
        log.info("fast.refused", exc_info=True)
        problem = f"its parts are of another kind ({type(error).__name__})"
    if problem:
        installation.undo()
    return problem


@contextmanager
def _moved_adapter(model: TrainableModel) -> Iterator[None]:
    """Give every adapter matrix values: a fresh adapter's are half zeros, which would hide half of what it computes."""
    if model.is_whole:
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}
    with torch.no_grad():
        for number, parameter in enumerate(model.trainable().values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.copy_(noise * (_ADAPTER_SCALE * parameter.shape[1] ** -0.5))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.trainable().items():
                parameter.copy_(before[name])


def _train_once(model: TrainableModel) -> None:
    """Read rows as training does where the model drops some: it must not be in training that a part refuses."""
    devices = [model.device] if model.device.type == "cuda" else []
    model.module.train()
    with torch.random.fork_rng(devices):
        model.read_flat(lay_out(_rows(model), share=model.can_share).to(model.device))


@dataclass(frozen=True, slots=True)
class _Measured:
    hidden_ND: Tensor
    gradients: list[Tensor]


def _compare(model: TrainableModel, plain: _Measured) -> str:
    windows: list[int | None] = []

    def read(rows: list[Example]) -> Tensor:
        batch = lay_out(rows, share=model.can_share).to(model.device)
        segments = Segments(batch.segments)
        hidden_TD = model.read_flat(batch, segments)
        windows.extend(segments.windows)
        return hidden_TD.index_select(0, batch.places_N)

    fast = _measure(model, lambda _, rows: read(rows))
    if len(windows) != model.module.config.num_hidden_layers or {*windows} - {None} != _expected_windows(model):
        return "its attention does not go through the interface for attention functions"
    slack = _WHOLE_SLACK if model.is_whole else 1
    shares = [_apart(plain.hidden_ND, fast.hidden_ND)]
    shares += [_apart(*pair) / slack for pair in zip(plain.gradients, fast.gradients, strict=True)]
    # Written so that a number which is none, or a gradient of zeros, is no agreement.
    return "" if all(share <= TOLERANCE[model.dtype] for share in shares) else f"its results differ: {max(shares):.1e}"


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


def _expected_windows(model: TrainableModel) -> set[int]:
    """Find the sliding windows that the layers should ask for: a short row alone would not show one left out."""
    config: Any = model.module.config
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return {window} if slides and window else set()


def _measure(model: TrainableModel, read: Callable[[TrainableModel, list[Example]], Tensor]) -> _Measured:
    """Compute hidden states of a few rows, and gradients that depend on all of what is computed."""
    hidden_ND = read(model, _rows(model))
    signs = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(1)).to(hidden_ND)
    parameters = _proven(model)
    gradients = torch.autograd.grad((hidden_ND * signs).float().sum(), parameters)
    return _Measured(hidden_ND.detach().float(), [gradient.float() for gradient in gradients])


def _proven(model: TrainableModel) -> list[nn.Parameter]:
    """Every adapter matrix; of a whole model the norms' scales and the biases, of which each layer has some.

    Its matrices' gradients are those of products that are not replaced, and would fill the memory twice over.
    """
    trained = list(model.trainable().values())
    return [parameter for parameter in trained if parameter.dim() == 1] if model.is_whole else trained


def _read_plain(model: TrainableModel, rows: list[Example]) -> Tensor:
    batch = collate(rows).to(model.device)
    return model.read_padded(batch.inputs_BT)[batch.rows_N, batch.columns_N]


def _rows(model: TrainableModel) -> list[Example]:
    vocabulary: int = model.module.get_input_embeddings().num_embeddings
    draw = np.random.default_rng(0)
    shared = draw.integers(vocabulary, size=_SHARED_TOKENS, dtype=np.int32)
    rows = [np.concatenate((shared, draw.integers(vocabulary, size=count, dtype=np.int32))) for count in _OWN_TOKENS]
    rows.append(draw.integers(vocabulary, size=_SHARED_TOKENS, dtype=np.int32))
    return [Example(0, tokens, np.arange(len(tokens)).clip(max=1).astype(np.uint8)) for tokens in rows]
