"""The steps from one form of the database to the next, oldest first, each in a module of its own.

A step is `async def apply(client: Client, context: MigrationContext) -> None`. It may die at any point and is run again
from its beginning, also over records that it has converted already; while it runs, no service has started that was not
running before. Form 1 is what databases had before they were numbered, so the first step leads to form 2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from shared.store.client import Client
from shared.store.migrations import keyed_hashes
from shared.store.migrations.context import MigrationContext

Step = Callable[[Client, MigrationContext], Awaitable[None]]

STEPS: Mapping[int, Step] = {2: keyed_hashes.apply}
"""By the version that a step leads to: 2, 3, …, without gaps."""
