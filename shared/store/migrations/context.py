"""What a migration is given."""

from __future__ import annotations

from msgspec import Struct

from shared.paths import Paths
from shared.settings import Settings


class MigrationContext(Struct, frozen=True, kw_only=True):
    """What a step may need besides the database."""

    settings: Settings
    paths: Paths
