"""The tiny base model, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.tiny import save_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))
