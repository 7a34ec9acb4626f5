"""Fixtures that modules of this folder share: a fixture that a module imports is made anew for it."""

from __future__ import annotations

from tests.integration.trainer_stack import (
    kept_trainer,
    lasting_settings,
    lasting_trainer,
    settings,
    tiny_base,
    trainer,
)

__all__ = ["kept_trainer", "lasting_settings", "lasting_trainer", "settings", "tiny_base", "trainer"]
