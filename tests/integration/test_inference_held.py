"""The real engine over many requests: nobody gets another's adapter, and memory stays what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inference_stack import InferenceStack, make_adapter, make_base
from tests.integration.serving_cases import NAMES, check_base_beside_adapters, check_memory_is_flat, held_stack


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def stack(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceStack]:
    adapters = [make_adapter(tmp_path_factory.mktemp("adapter"), base, seed=seed) for seed in range(len(NAMES))]
    with held_stack(base, adapters) as stack:
        yield stack


def test_base_requests_never_get_an_adapter(stack: InferenceStack) -> None:
    check_base_beside_adapters(stack, NAMES, cases=50)


def test_memory_stays_flat_while_adapters_come_and_go(stack: InferenceStack, base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, seed=9)
    check_memory_is_flat(stack, lambda name: stack.publish(name, adapter), cycles=60)
