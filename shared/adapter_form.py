"""What an adapter's configuration makes of its matrices: rank and scale of each layer, and nothing beyond s·B·A.

PEFT can set much more. What is not known here to be without effect on the result is refused, so that a new kind of
adapter is not taken for a plain one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from shared.adapters import CONFIG_NAME
from shared.errors import AdapterRejected

V = TypeVar("V")

# What these say was of use in training, or is checked by name and shape; everything else that PEFT can set changes
# what an adapter computes, and is refused unless it is unset.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
_HONOURED = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # the other ways to begin change the base's weights too
}

_MAX_RANK = 1 << 16
_MAX_SCALE = 1e4
"""Far beyond what anybody trains with; larger ones make numbers that are not finite."""


class AdapterForm(Struct, frozen=True, rename={"rank": "r", "alpha": "lora_alpha"}):
    """Rank and scale of each layer, as PEFT counts them."""

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    def rank_of(self, module: str) -> int:
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        rank = self.rank_of(module)
        return float(alpha / rank**0.5 if self.use_rslora else alpha / rank)


def read_form(raw: bytes) -> AdapterForm:
    """Read an adapter_config.json. Raises AdapterRejected when it is damaged, or says more than s·B·A."""
    try:
        config = msgspec.json.decode(raw, type=dict[str, Any])
        form = msgspec.convert(config, AdapterForm)
        [re.compile(key) for key in (*form.rank_pattern, *form.alpha_pattern)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, re.error) as error:
        raise AdapterRejected(f"{CONFIG_NAME} cannot be read: {error}") from error
    for name, value in sorted(config.items()):
        if name in _WITHOUT_EFFECT | _HONOURED:
            continue
        if value not in _ALLOWED[name] if name in _ALLOWED else value:
            raise AdapterRejected(f"{CONFIG_NAME}: {name} = {repr(value)[:100]} is more than a product of two matrices")
    _check_numbers(form)
    return form


def is_pattern_of(key: str, modules: Iterable[str]) -> bool:
    """Tell whether a key of `rank_pattern` or `alpha_pattern` matches any of the modules."""
    return any(_pattern(key).match(module) for module in modules)


def _check_numbers(form: AdapterForm) -> None:
    """Raise AdapterRejected when a layer could have an impossible rank, or a scale that is absurd or infinite."""
    ranks = (form.rank, *form.rank_pattern.values())
    if min(ranks) < 1:
        raise AdapterRejected(f"{CONFIG_NAME} has a rank below 1")
    if max(ranks) > _MAX_RANK:
        raise AdapterRejected(f"{CONFIG_NAME} has a rank above {_MAX_RANK}")
    divisor = min(ranks) ** 0.5 if form.use_rslora else min(ranks)
    for alpha in (form.alpha, *form.alpha_pattern.values()):
        if not abs(alpha) / divisor <= _MAX_SCALE:
            raise AdapterRejected(f"{CONFIG_NAME} has an alpha of {alpha:g}, which makes a scale above {_MAX_SCALE:g}")


def _matching(patterns: Mapping[str, V], module: str, default: V) -> V:
    """Return the value of the first pattern that matches a module's name or its end, as PEFT does it."""
    return next((value for key, value in patterns.items() if _pattern(key).match(module)), default)


@lru_cache(maxsize=4096)
def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
