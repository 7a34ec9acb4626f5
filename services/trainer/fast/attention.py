"""Attention over a tree of segments, as an attention function of transformers. Axes: H heads, T tokens, D head size.

transformers lets a model's attention be any registered function and hands it what the model's forward was given beside
its own arguments; so segments reach it through every architecture that uses this interface, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from services.trainer.data.segments import Segment

NAME = "selftune_segments"
"""The name under which transformers knows this function."""
SUPPORTED = frozenset({"dropout", "scaling", "sliding_window", "softcap", "position_ids", "segments"})
"""What a model may ask of it; another argument that is not None would be left out silently, so it is refused."""
_CAUSAL_KEYS = 768
"""From so many keys on the kernel gains by leaving out what lies after a query."""
_QUERY_BLOCK = 1024
"""Queries that share a mask: a sliding layer's mask grows with the window, not with the row."""


@dataclass(frozen=True, slots=True)
class Segments:
    """A batch's segments and the masks that its layers share."""

    parts: Sequence[Segment]
    windows: list[int | None] = field(default_factory=list)
    """The sliding window that each layer asked for."""
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return [part.length for part in self.parts]

    def mask(self, n_queries: int, n_keys: int, window: int | None, like: Tensor) -> Tensor:
        """Return what is added to scores, (queries, keys): the queries are the last of the keys' tokens."""
        key = (n_queries, n_keys, window)
        if key not in self._masks:
            queries = torch.arange(n_keys - n_queries, n_keys, device=like.device)[:, None]
            keys = torch.arange(n_keys, device=like.device)[None]
            seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
            self._masks[key] = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
                ~seen, -math.inf
            )
        return self._masks[key]


def attend(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Attend from each token to the tokens before it in its rows; G heads of keys may serve H of queries.

    Returns (1, T, H, D). Raises NotImplementedError for what this function does not do.
    """
    unknown = [n for n, value in asked.items() if n not in SUPPORTED and not isinstance(value, bool | None)]
    if unknown or asked.get("dropout") or attention_mask is not None or "segments" not in asked:
        raise NotImplementedError(f"attention with {unknown or 'dropout, a mask or no segments'}")
    segments: Segments = asked["segments"]
    segments.windows.append(asked.get("sliding_window"))
    if query_1HTD.is_cuda and query_1HTD.dtype == torch.float32:
        # For shared heads in this type CUDA has no kernel but the one that keeps every score (torch's documentation).
        key_1GTD, value_1GTD = _one_for_each(query_1HTD, key_1GTD), _one_for_each(query_1HTD, value_1GTD)
    queries, keys, values = (
        torch.split(tensor, segments.lengths, dim=2) for tensor in (query_1HTD, key_1GTD, value_1GTD)
    )
    outputs = []
    for index, part in enumerate(segments.parts):
        path = (*part.before, index)
        run = _Run(
            [queries[i] for i in path],
            _joined([keys[i] for i in path]),
            _joined([values[i] for i in path]),
            window=asked.get("sliding_window"),
            scaling=asked.get("scaling"),
        )
        outputs.append(run.attend(segments, asked.get("softcap")))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


@dataclass(frozen=True, slots=True)
class _Run:
    """One segment's queries (the last of `queries`), and the keys and values of everything up to its end."""

    queries: list[Tensor]
    key_1GSD: Tensor
    value_1GSD: Tensor
    window: int | None
    scaling: float | None

    @property
    def _n_keys(self) -> int:
        return self.key_1GSD.shape[2]

    @property
    def _n_queries(self) -> int:
        return self.queries[-1].shape[2]

    @property
    def _cutting_window(self) -> int | None:
        return self.window if self.window is not None and self.window < self._n_keys else None

    def attend(self, segments: Segments, softcap: float | None) -> Tensor:
        """Return (1, H, T, D) for the T queries of this segment."""
        wants_mask = softcap or self._cutting_window is not None
        if not wants_mask and (len(self.queries) == 1 or _CAUSAL_KEYS < self._n_keys < 2 * self._n_queries):
            # A few more queries, whose results are dropped, are cheaper than scores that a mask drops.
            whole = scaled_dot_product_attention(
                _joined(self.queries),
                self.key_1GSD,
                self.value_1GSD,
                is_causal=True,
                scale=self.scaling,
                enable_gqa=True,
            )
            return whole[:, :, self._n_keys - self._n_queries :]
        blocks = [self._block(start, segments, softcap) for start in range(0, self._n_queries, _QUERY_BLOCK)]
        return _joined(blocks)

    def _block(self, start: int, segments: Segments, softcap: float | None) -> Tensor:
        """Attend from some of the queries to the keys that they see, so that no mask is larger than it has to be."""
        end = min(start + _QUERY_BLOCK, self._n_queries)
        before = self._n_keys - self._n_queries
        window = self._cutting_window
        seen = slice(0 if window is None else max(0, before + start - window + 1), before + end)
        query, keys, values = self.queries[-1][:, :, start:end], self.key_1GSD[:, :, seen], self.value_1GSD[:, :, seen]
        mask = segments.mask(end - start, keys.shape[2], window, keys)
        if softcap:
            return _capped(query, keys, values, mask, scaling=self.scaling, softcap=softcap)
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling, enable_gqa=True)


def _capped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scaling: float | None, softcap: float
) -> Tensor:
    """Attend with scores squeezed into ±softcap (Gemma 2, arXiv:2408.00118), which not every kernel does."""
    keys, values = _one_for_each(query, keys), _one_for_each(query, values)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(query @ keys.transpose(2, 3) * (scale / softcap)) * softcap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ values


def _one_for_each(query: Tensor, shared: Tensor) -> Tensor:
    """Repeat heads of keys or values that serve several of queries."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


AttentionInterface.register(NAME, attend)
