"""How much memory a training process will need at most, from the base's shape, the options and the longest rows.

No torch: it is known before a device is used. Everything in bytes; a "piece" is what goes through the model at once.

| part        | formula                                                                                               |
| ----------- | ----------------------------------------------------------------------------------------------------- |
| runtime     | what Python holds once torch, transformers and peft are imported                                      |
| weights     | parameters x size of a number; with nf4 the layers' matrices at NF4_BYTES, and one of them made dense |
| adapter     | rank x (inputs + outputs) of each target, 4 times in float32: it, its gradient, AdamW's two moments   |
| optimizer   | with the finetuning_type `full`, three times the weights: their gradient, AdamW's two moments; of the |
|             | layers a share in each of several processes, and likewise of the weights                              |
| activations | tokens of the heaviest piece x what every layer keeps of a token for the backward pass                |
| logits      | LOGIT_ROWS learnt tokens x vocabulary, twice in float32; with bfloat16 twice more in that              |
| reload      | with nf4, by how much more the finished adapter on the whole base needs than the training, if it does |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from services.trainer.memory.shape import BaseShape

RUNTIME_BYTES = 640_000_000
"""Of them 440 MB after the imports, the rest what a training allocates whatever its size (measured)."""
NF4_RUNTIME_BYTES = 180_000_000
"""What bitsandbytes adds."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a number in 4 bits: blocks of 64 share a scale of 8 bits, 256 of those a float32 (arXiv:2305.14314)."""
LOGIT_ROWS = 256
"""losses.chunked_nll's chunk."""
HEAP = 1.4
"""On a CPU the C library's heap grows by so much more than is kept (measured): what is freed between stays with it."""
FLOAT32 = 4


class Piece(Struct, frozen=True, kw_only=True):
    """Tokens that go through the model at once."""

    tokens: int
    """Without padding, those that rows begin alike with counted once."""
    padded_tokens: int
    """The same as the plain path reads them."""


class Plan(Struct, frozen=True, kw_only=True):
    """What decides the memory, besides base and data."""

    rank: int
    targets: tuple[str, ...]
    quantization: Literal["none", "nf4"] = "none"
    number_bytes: int = FLOAT32
    """Size of one of the frozen base's numbers: 4, or 2 for bfloat16."""
    dropout: bool = False
    plain: bool = False
    """Whether rows are padded and the layers are transformers' own."""
    on_gpu: bool = False
    """Count tensors alone."""
    full: bool = False
    """Whether every weight is trained; there is no adapter then."""
    processes: int = 1
    """How many share the layers of a model whose every weight is trained."""


class MemoryEstimate(Struct, frozen=True, kw_only=True):
    """Bytes, part by part."""

    runtime: int
    weights: int
    adapter: int
    activations: int
    logits: int
    reload: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


def estimate(shape: BaseShape, plan: Plan, piece: Piece) -> MemoryEstimate:
    """Add up what a job needs."""
    training = MemoryEstimate(
        runtime=runtime_bytes(plan),
        weights=weight_bytes(shape, plan),
        adapter=adapter_bytes(shape, plan),
        activations=activation_bytes(shape, plan, piece),
        logits=logit_bytes(shape, plan, piece),
        optimizer=optimizer_bytes(shape, plan),
    )
    return replace(training, reload=max(0, reload_bytes(shape, plan) - training.total))


def runtime_bytes(plan: Plan) -> int:
    if plan.on_gpu:
        return 0
    return RUNTIME_BYTES + (NF4_RUNTIME_BYTES if plan.quantization == "nf4" else 0)


def weight_bytes(shape: BaseShape, plan: Plan) -> int:
    """Embeddings, norms and the output layer are never in 4 bits. A model is whole until it is loaded, then divided."""
    if plan.full:
        loaded = shape.parameters * plan.number_bytes
        return max(_kept_parameters(shape, plan) * plan.number_bytes, loaded - optimizer_bytes(shape, plan))
    if plan.quantization == "none":
        return shape.parameters * plan.number_bytes
    matrices = [math.prod(linear) for linear in shape.linears()]
    dense = (shape.parameters - sum(matrices)) * plan.number_bytes
    return dense + round(sum(matrices) * NF4_BYTES) + max(matrices, default=0) * 2 * plan.number_bytes


def optimizer_bytes(shape: BaseShape, plan: Plan) -> int:
    """Where every weight is trained: gradient and moments of what a process keeps, and the first one's resume point.

    A resume point of shares is put together in memory; without shares it is written from where the numbers are.
    """
    if not plan.full:
        return 0
    gathered = shape.parameters if plan.processes > 1 and not plan.on_gpu else 0
    return 3 * FLOAT32 * (_kept_parameters(shape, plan) + gathered)


def _kept_parameters(shape: BaseShape, plan: Plan) -> int:
    whole = shape.parameters - shape.layer_parameters
    return whole + math.ceil(shape.layer_parameters / plan.processes)


def reload_bytes(shape: BaseShape, plan: Plan) -> int:
    """What a QLoRA job needs at its end, when its adapter is put on the base as it is served; else 0."""
    if plan.quantization == "none":
        return 0
    whole = shape.parameters * plan.number_bytes + FLOAT32 * adapter_parameters(shape, plan)
    return runtime_bytes(plan) + whole


def adapter_parameters(shape: BaseShape, plan: Plan) -> int:
    if plan.full:
        return 0
    return plan.rank * sum(outputs + inputs for outputs, inputs in shape.linears(*plan.targets))


def adapter_bytes(shape: BaseShape, plan: Plan) -> int:
    return 4 * FLOAT32 * adapter_parameters(shape, plan)


def activation_bytes(shape: BaseShape, plan: Plan, piece: Piece) -> int:
    tokens = piece.padded_tokens if plan.plain else piece.tokens
    count = _count_for(plan)
    numbers = count(shape, plan)
    kept = tokens * numbers * plan.number_bytes
    return kept if plan.on_gpu else round(HEAP * kept)


def _count_for(plan: Plan) -> Callable[[BaseShape, Plan], int]:
    if plan.full:
        return whole_numbers
    return plain_numbers if plan.plain else dropout_numbers if plan.dropout else fast_numbers


def whole_numbers(shape: BaseShape, plan: Plan) -> int:
    """Count the same where every weight is trained: transformers' own norms and gates, which keep what a gradient of
    their scales needs, and the activated gate."""
    return fast_numbers(shape, plan) + _inputs(shape, "q_proj", "gate_proj", "down_proj")


def fast_numbers(shape: BaseShape, plan: Plan) -> int:
    """Count the numbers that all layers keep of a token on the fast path.

    A layer keeps its input and the attention's output as they come into and out of a norm, and each product's input
    (fast/linears.py, fast/elementwise.py); of q, k, v the product and what is rotated, and of attention its output, and
    that in another order (fast/attention.py).
    """
    queries, keys = _outputs(shape, "q_proj"), _outputs(shape, "k_proj")
    attention = (
        2 * _inputs(shape, "q_proj") + 3 * queries + 2 * keys + _outputs(shape, "v_proj") + _inputs(shape, "o_proj")
    )
    gated = 2 * _inputs(shape, "gate_proj") + _outputs(shape, "gate_proj", "up_proj") + _inputs(shape, "down_proj")
    return attention + gated + _adapter_numbers(shape, plan)


def _inputs(shape: BaseShape, *names: str) -> int:
    return sum(inputs for _, inputs in shape.linears(*names))


def _outputs(shape: BaseShape, *names: str) -> int:
    return sum(outputs for outputs, _ in shape.linears(*names))


def _adapter_numbers(shape: BaseShape, plan: Plan) -> int:
    """Count the low-rank products."""
    return plan.rank * len(shape.linears(*plan.targets))


def dropout_numbers(shape: BaseShape, plan: Plan) -> int:
    """Count the same where each adapter draws its own dropout: peft's layers keep an input each, and its mask;
    the base's own products keep nothing."""
    attention = _inputs(shape, "q_proj") + 2 * _outputs(shape, "q_proj") + _outputs(shape, "k_proj", "v_proj")
    gated = _inputs(shape, "gate_proj") + 2 * _outputs(shape, "gate_proj") + _outputs(shape, "up_proj")
    dropped = _inputs(shape, *plan.targets)
    return attention + gated + 2 * dropped + _adapter_numbers(shape, plan)


def plain_numbers(shape: BaseShape, plan: Plan) -> int:
    """Count the same where transformers' own parts compute: of q, k, v only what is rotated, no second order of the
    attention's output, but the activated gate beside the gate."""
    attention = 2 * _inputs(shape, "q_proj") + 2 * _outputs(shape, "q_proj") + _outputs(shape, "k_proj", "v_proj")
    gated = 2 * _inputs(shape, "gate_proj") + 2 * _outputs(shape, "gate_proj") + _outputs(shape, "up_proj")
    return attention + gated + _inputs(shape, "down_proj") + _adapter_numbers(shape, plan)


def logit_bytes(shape: BaseShape, plan: Plan, piece: Piece) -> int:
    """Logits of a chunk and their exponentials; with bfloat16 two more in that."""
    rows = min(LOGIT_ROWS, piece.tokens)
    halves = 2 * plan.number_bytes if plan.number_bytes < FLOAT32 else 0
    return rows * shape.vocabulary * (2 * FLOAT32 + halves)
