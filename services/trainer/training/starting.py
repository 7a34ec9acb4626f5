"""The model as training starts from it, put in place of the trained one for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.nn import Parameter


class StartingPoint:
    """A copy of the trained parameters as they are now: without a parent that is an adapter which does nothing."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = list(parameters.values())
        self._start = [parameter.detach().clone() for parameter in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model be what it was, without gradients; afterwards it is what it is, to the last bit."""
        now = [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            self._put(self._start)
            try:
                yield
            finally:
                self._put(now)

    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
