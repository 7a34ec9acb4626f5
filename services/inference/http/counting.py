"""Tokens by project and model, counted where they are made: an answer may be streamed, cut, or say nothing of usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias

from vllm.sampling_params import RequestOutputKind

from services.inference import metrics
from services.inference.http.observing import current_project

Outputs: TypeAlias = AsyncGenerator[Any, None]


class Note(Protocol):
    """Is told what a request of a project to a model has used."""

    def __call__(self, project: str, model: str, *, prompt: int, cached: int, completion: int) -> None: ...


def count_tokens(engine: Any, model_of: Callable[[Any], str], note: Note) -> None:
    """Have vLLM's AsyncLLM count what it does for requests; `model_of` names their LoRA request, or the lack of one.

    Call it before vLLM's handlers are built.
    """
    engine.generate = _counting(engine.generate, model_of, note)
    engine.encode = _counting(engine.encode, model_of, note)


def _counting(ask: Callable[..., Outputs], model_of: Callable[[Any], str], note: Note) -> Callable[..., Outputs]:
    def counted(*args: Any, **options: Any) -> Outputs:
        whose = (current_project.get(), model_of(options.get("lora_request")))
        params = options.get("sampling_params") or next(iter(args[1:2]), None)
        tally = Tally(is_delta=getattr(params, "output_kind", None) is RequestOutputKind.DELTA)
        return _counted(ask(*args, **options), tally, whose, note)

    return counted


async def _counted(outputs: Outputs, tally: Tally, whose: tuple[str, str], note: Note) -> Outputs:
    try:
        async with aclosing(outputs):
            async for output in outputs:
                tally.add(output)
                yield output
    finally:
        labels = metrics.tenant(*whose)
        metrics.TOKENS.labels(*labels, "prompt").inc(tally.prompt)
        metrics.TOKENS.labels(*labels, "completion").inc(tally.completion)
        if tally.prompt:
            note(*whose, prompt=tally.prompt, cached=tally.cached, completion=tally.completion)


class Tally:
    """Counts one request's tokens. With `is_delta` each of vLLM's outputs has what is new, else all there is."""

    def __init__(self, *, is_delta: bool) -> None:
        self.prompt = 0
        self.cached = 0
        """Of the prompt's tokens those that the prefix cache had."""
        self._is_delta = is_delta
        self._made: dict[int, int] = {}

    @property
    def completion(self) -> int:
        return sum(self._made.values())

    def add(self, output: Any) -> None:
        self.prompt = len(output.prompt_token_ids or ()) or self.prompt
        self.cached = min(getattr(output, "num_cached_tokens", None) or self.cached, self.prompt)
        if isinstance(output.outputs, list):  # embeddings have none
            for choice in output.outputs:
                before = self._made.get(choice.index, 0) if self._is_delta else 0
                self._made[choice.index] = before + len(choice.token_ids)
