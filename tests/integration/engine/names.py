"""What the shared engine has adapters for."""

from __future__ import annotations

from tests.integration.inference_stack import BASE_ID

TUNED = f"ft:{BASE_ID}:acme:style:AbCdEfGh"
V1, V2, V3 = VERSIONS = tuple(f"ft:{BASE_ID}:acme:bot:{letter * 8}" for letter in "ABC")
ALIAS = "gpt-4o-mini"
"""What the API calls TUNED, too."""
