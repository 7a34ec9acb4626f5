"""What is looked at before an adapter replaces anything in an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm.lora.lora_model import LoRAModel  # noqa: E402
from vllm.lora.lora_weights import LoRALayerWeights  # noqa: E402

from services.inference.engine.lora_manager import check_fit  # noqa: E402

SHAPES = {"layer.q_proj": (8, 6)}


def adapter(change: Callable[[Any], None] = lambda weights: None, *, name: str = "layer.q_proj") -> LoRAModel:
    weights = LoRALayerWeights(name, 4, 8, torch.ones(4, 8), torch.ones(6, 4))
    change(weights)
    return LoRAModel(1, 4, {name: weights})


def test_an_adapter_that_fits_passes() -> None:
    check_fit(adapter(), SHAPES, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.lora_a.fill_(float("nan")), "not finite"),
        (lambda weights: weights.lora_b.fill_(float("inf")), "not finite"),
        (lambda weights: setattr(weights, "scaling", 1e300), "once they are scaled"),
        (lambda weights: setattr(weights, "scaling", float("nan")), "once they are scaled"),
        (lambda weights: setattr(weights, "lora_b", torch.ones(5, 4)), "do not fit"),
        (lambda weights: setattr(weights, "lora_b", None), "only one of its two"),
    ],
)
def test_one_that_does_not_is_named(change: Callable[[Any], None], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_fit(adapter(change), SHAPES, 4)


def test_rank_and_layer_are_looked_at() -> None:
    with pytest.raises(ValueError, match="rank 4"):
        check_fit(adapter(), SHAPES, 2)
    with pytest.raises(ValueError, match="does not have"):
        check_fit(adapter(name="layer.other"), SHAPES, 4)
    with pytest.raises(ValueError, match="no weights"):
        check_fit(LoRAModel(1, 4, {}), SHAPES, 4)
