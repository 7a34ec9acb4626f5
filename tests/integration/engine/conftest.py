"""A replica with adapters, and the API before it, for every test of this package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api_server import ApiServer
from tests.integration.engine.names import ALIAS, TUNED, VERSIONS
from tests.integration.inference_stack import KEY, InferenceStack, inference_stack, make_adapter, make_base


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceStack]:
    """A server with two places for more adapters than that, so that most moves of an alias have to load."""
    base = make_base(tmp_path_factory.mktemp("base"))
    with inference_stack(base, max_loras=2, max_cpu_loras=2) as stack:
        stack.register_base()
        for seed, name in enumerate((TUNED, *VERSIONS), start=1):
            stack.publish(name, make_adapter(tmp_path_factory.mktemp("adapter"), base, seed=seed), listed=True)
        stack.start()
        stack.wait_ready()
        yield stack


@pytest.fixture(scope="package")
def engine_api(stack: InferenceStack) -> Iterator[ApiServer]:
    server = ApiServer(stack.home, stack.settings.redis_url, internal_key=KEY, model_aliases={ALIAS: TUNED})
    yield server
    server.stop()
