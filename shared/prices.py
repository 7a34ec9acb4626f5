"""What tokens cost, as an operator sets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

_MILLION = 1_000_000
ANY_MODEL = "*"
"""Stands among prices for every model that has none of its own."""

Price = Annotated[float, Meta(ge=0, le=1e6)]


class TokenPrice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices of a million tokens, in the currency of the settings."""

    input: Price
    output: Price
    cached_input: Price | None = None
    """Of what the prefix cache has already; None is the same as `input`."""

    def of(self, *, input_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        """Return the price of so many tokens; the cached ones are among those of the input."""
        cached = self.input if self.cached_input is None else self.cached_input
        read = (input_tokens - cached_tokens) * self.input + cached_tokens * cached
        return (read + output_tokens * self.output) / _MILLION


def price_of(prices: Mapping[str, TokenPrice], model: str, base: str) -> TokenPrice | None:
    """Return the price of a model: its own, its base's, or that of any; None where none is set."""
    return prices.get(model) or prices.get(base) or prices.get(ANY_MODEL)
