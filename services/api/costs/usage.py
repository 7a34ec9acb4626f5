"""What projects have used, day by day, put together by project, model or day, with its price."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from shared.errors import InvalidRequest
from shared.prices import TokenPrice, price_of
from shared.records import KeyRecord
from shared.schemas.costs import CostGroup, Costs, GroupBy
from shared.settings import Settings
from shared.store.projects import ProjectStore
from shared.store.registry import Registry
from shared.store.usage import KEEP_DAYS, Day, Metric, UsageStore, Used

DEFAULT_DAYS = 30
_PAGE = 100
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens")


class Period(Struct, frozen=True):
    """Days from `start` to `end`, both included."""

    start: datetime.date
    end: datetime.date

    def dates(self) -> list[str]:
        count = (self.end - self.start).days + 1
        return [(self.start + datetime.timedelta(days=number)).isoformat() for number in range(count)]


def period(start: str | None, end: str | None, *, today: datetime.date) -> Period:
    """Read the days of a request: as in 2026-11-28, the last 30 where they are left out. Raises InvalidRequest."""
    last = _date(end, "end") if end else today
    first = _date(start, "start") if start else last - datetime.timedelta(days=DEFAULT_DAYS - 1)
    if first > last:
        raise InvalidRequest("'start' is after 'end'.", code="invalid_value", param="start")
    if (last - first).days >= KEEP_DAYS:
        raise InvalidRequest(
            f"The days are more than {KEEP_DAYS}, as long as usage is kept.", code="invalid_value", param="start"
        )
    return Period(first, last)


def _date(text: str, param: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(
            f"Invalid value for '{param}': expected a day such as 2026-11-28.", code="invalid_value", param=param
        ) from error


class UsageCosts:
    """Reads usage and puts prices on it."""

    def __init__(self, settings: Settings, usage: UsageStore, registry: Registry, projects: ProjectStore) -> None:
        self._settings = settings
        self._usage = usage
        self._registry = registry
        self._projects = projects

    async def costs(self, group_by: GroupBy, days: Period, *, caller: KeyRecord) -> Costs:
        """Return the costs of the key's project; by project, a key with the scope `admin` sees all of them."""
        projects: Sequence[str] = [caller.project]
        if group_by == "project" and caller.access.is_admin:
            projects = await self._all_projects(caller.project)
        groups: dict[str, Counter[Used]] = {}
        for project in projects:
            found = await self._usage.read([Day(project, date) for date in days.dates()])
            for day, counts in found.items():
                for used, number in counts.items():
                    group = {"project": day.project, "day": day.date, "model": used.model}[group_by]
                    groups.setdefault(group, Counter())[used] += number
        prices = await self._prices({used.model for counts in groups.values() for used in counts})
        hourly = self._settings.device_hour_price
        return Costs(
            group_by=group_by,
            start=days.start.isoformat(),
            end=days.end.isoformat(),
            currency=self._settings.currency,
            data=[_priced(group, groups[group], prices, hourly) for group in sorted(groups)],
            remarks=_remarks(groups.values(), prices, hourly),
        )

    async def of_model(self, project: str, model: str, days: Period) -> Counter[Metric]:
        """Return what requests to a model have used, by metric; evals' and batches' are among them."""
        return await self._usage.of_model([Day(project, date) for date in days.dates()], model)

    async def price(self, model: str, *, base: str | None = None) -> TokenPrice | None:
        """Return the price of a model's tokens; None where none is set. `base` is what a deleted model was on."""
        record = await self._registry.get(model)
        return price_of(self._settings.model_prices, model, (base or model) if record is None else record.base)

    async def _prices(self, models: Iterable[str]) -> dict[str, TokenPrice | None]:
        return {model: await self.price(model) for model in sorted(models)}

    async def _all_projects(self, own: str) -> Sequence[str]:
        found, after, more = {own}, None, True
        while more:
            page, more = await self._projects.list(after=after, limit=_PAGE, include_archived=True)
            found.update(project.id for project in page)
            after = page[-1].id if page else None
            more = more and bool(page)
        return sorted(found)


def _priced(
    group: str, counts: Mapping[Used, int], prices: Mapping[str, TokenPrice | None], hourly: float
) -> CostGroup:
    sums: Counter[str] = Counter()
    for used, number in counts.items():
        sums[used.metric] += number
    serving = _serving_price(counts, prices)
    seconds = sums["device_ms"] / 1000
    training = seconds / 3600 * hourly if hourly or not seconds else None
    return CostGroup(
        group=group,
        requests=sums["requests"],
        input_tokens=sums["input_tokens"],
        cached_tokens=sums["cached_tokens"],
        output_tokens=sums["output_tokens"],
        device_seconds=seconds,
        serving_price=_rounded(serving),
        training_price=_rounded(training),
        price=None if serving is None or training is None else _rounded(serving + training),
    )


def _serving_price(counts: Mapping[Used, int], prices: Mapping[str, TokenPrice | None]) -> float | None:
    total = 0.0
    for model in {used.model for used in counts}:
        tokens = {metric: counts.get(Used(metric, model), 0) for metric in _TOKENS}
        if not any(tokens.values()):
            continue
        price = prices[model]
        if price is None:
            return None
        total += price.of(**tokens)
    return total


def _rounded(price: float | None) -> float | None:
    return None if price is None else round(price, 6)


def _remarks(groups: Iterable[Mapping[Used, int]], prices: Mapping[str, TokenPrice | None], hourly: float) -> list[str]:
    """Say which prices are missing."""
    used = {one for counts in groups for one in counts}
    served = sorted({one.model for one in used if one.metric in _TOKENS and prices[one.model] is None})
    said = []
    if served:
        more = f" and {len(served) - 5} more" if len(served) > 5 else ""
        said.append(f"model_prices has no price for {', '.join(served[:5])}{more}.")
    if not hourly and any(one.metric == "device_ms" for one in used):
        said.append("device_hour_price is not set, so training has no price.")
    return said
