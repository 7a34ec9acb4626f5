"""Headers by which the gateway tells an inference server what concerns no client."""

from __future__ import annotations

PROJECT_HEADER = "x-selftune-project"
"""The project that a request is for."""
