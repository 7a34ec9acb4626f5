"""Training in the plainest words of transformers and peft: what ours has to equal, number by number.

Nothing of services.trainer computes anything here. Every row stands in a padded batch with a mask and labels of -100,
attention is transformers' eager one, the logits are whole, and autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from services.trainer.data.chat import Example
from services.trainer.data.pairs import Pair
from services.trainer.protocol import TrainSpec

TOLERANCE = 1e-4
"""Relative, of a loss and of each parameter's gradient as a whole."""

Gradients = dict[str, Tensor]
Move = Callable[[Mapping[str, torch.nn.Parameter]], None]
"""Gives parameters other values, the same whoever built them."""


def plain_model(spec: TrainSpec) -> Any:
    """Load the base in float32, or in 4 bits if the spec says so, and put a fresh adapter on it.

    Where every weight is trained there is none. In training mode: in the other one bitsandbytes computes in bfloat16,
    on CPUs with AVX512-BF16.
    """
    options: dict[str, Any] = {}
    if spec.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
        options["device_map"] = {"": "cpu"}
    base = AutoModelForCausalLM.from_pretrained(
        Path(spec.base_folder), dtype=torch.float32, attn_implementation="eager", **options
    )
    if spec.finetuning_type == "full":
        return base.train()
    config = LoraConfig(
        r=spec.rank, lora_alpha=int(spec.alpha), target_modules=list(spec.targets), lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(base, config).train()


def move_away_from_base(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Give an adapter the same random weights whoever built it; with lora_B at zero lora_A would have no gradient."""
    with torch.no_grad():
        for number, name in enumerate(sorted(parameters)):
            generator = torch.Generator().manual_seed(number)
            parameters[name].copy_(torch.randn(parameters[name].shape, generator=generator) * 0.1)


def move_a_little(parameters: Mapping[str, torch.nn.Parameter], sign: float) -> None:
    """Move so little that what becomes likelier with one sign becomes less likely with the other."""
    move_away_from_base(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.mul_(sign / 5)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def sft_loss(model: Any, examples: Sequence[Example]) -> Tensor:
    """The mean over the supervised tokens of the whole batch, as transformers computes it from labels."""
    inputs, mask, labels = _padded(examples)
    return model(input_ids=inputs, attention_mask=mask, labels=labels).loss  # type: ignore[no-any-return]


def dpo_loss(model: Any, pairs: Sequence[Pair], beta: float) -> Tensor:
    """Equation 7 of arXiv:2305.18290; the reference is the model without its adapter."""
    with model.disable_adapter():
        reference = start_logprobs(model, pairs)
    return dpo_loss_from(model, pairs, reference, beta)


def start_logprobs(model: Any, pairs: Sequence[Pair]) -> Tensor:
    """What a model says of the preferred answers, then of the others, before it is trained."""
    with torch.no_grad():
        return answer_logprobs(model, _sides(pairs))


def dpo_loss_from(model: Any, pairs: Sequence[Pair], reference: Tensor, beta: float) -> Tensor:
    chosen, rejected = (answer_logprobs(model, _sides(pairs)) - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected)).mean()


def _sides(pairs: Sequence[Pair]) -> list[Example]:
    return [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]


def gradients(loss: Tensor, parameters: Mapping[str, torch.nn.Parameter]) -> Gradients:
    """Return the gradient of each parameter that `loss` depends on; what was there before does not count."""
    for parameter in parameters.values():
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def assert_equal(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    """Compare (loss, gradients): every parameter's gradient has to be there, as long and in the same direction."""
    assert abs(found[0] - expected[0]) <= TOLERANCE * abs(expected[0]), (found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    off = {name: _distance(found[1][name], expected[1][name]) for name in expected[1]}
    worst = max(off, key=lambda name: off[name])
    assert off[worst] <= TOLERANCE, f"{worst}: {off[worst]:.1e} of its norm, of {len(off)} parameters"


def _distance(found: Tensor, expected: Tensor) -> float:
    norm = float(expected.double().norm())
    assert norm > 0, "a gradient of zeros would compare equal to anything small"
    return float((found.double() - expected.double()).norm()) / norm


def _padded(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(example.tokens) for example in examples)
    shape = (len(examples), width)
    inputs, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
    for row, example in enumerate(examples):
        tokens = torch.tensor([int(token) for token in example.tokens])
        learnt = torch.tensor(list(example.supervised)).bool()
        inputs[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = tokens.where(learnt, torch.tensor(-100))
    return inputs, mask, labels


def answer_logprobs(model: Any, examples: Sequence[Example]) -> Tensor:
    """The log probability of each row's supervised tokens together, in nats."""
    inputs, mask, labels = _padded(examples)
    logprobs = model(input_ids=inputs, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    picked = logprobs.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    summed: Tensor = (picked * (targets != -100)).sum(1)
    return summed
