"""One story for both clients: an AsyncOpenAI that is used as if it were an OpenAI."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any


class Blocking:
    """Wraps an object of the async SDK: calls are awaited, async iterators are read as plain ones."""

    def __init__(self, wrapped: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._wrapped = wrapped
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return self._plain(getattr(self._wrapped, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain(self._awaited(self._wrapped(*args, **kwargs)))

    def __iter__(self) -> Iterator[Any]:
        iterator = aiter(self._wrapped)
        while True:
            try:
                yield self._loop.run_until_complete(anext(iterator))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Any:
        return self._plain(self._loop.run_until_complete(self._wrapped.__aenter__()))

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._wrapped.__aexit__(*error))

    def _awaited(self, value: Any) -> Any:
        return self._loop.run_until_complete(_await(value)) if inspect.isawaitable(value) else value

    def _plain(self, value: Any) -> Any:
        asynchronous = hasattr(value, "__aiter__") or hasattr(value, "__aenter__") or hasattr(value, "__await__")
        resource = type(value).__name__.startswith("Async")
        return Blocking(value, self._loop) if asynchronous or resource or inspect.ismethod(value) else value


async def _await(value: Any) -> Any:
    return await value
