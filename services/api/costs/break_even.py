"""When a job's training is paid back: what a request to its model costs here, and would cost a hosted model."""

from __future__ import annotations

import datetime
import math

from services.api.costs.usage import Period, UsageCosts
from shared.errors import InvalidRequest, TransitionRefused
from shared.prices import TokenPrice
from shared.records import JobRecord
from shared.schemas.costs import BreakEven, MeanRequest
from shared.settings import Settings
from shared.states import JobState
from shared.store.usage import KEEP_DAYS


class BreakEvens:
    """Compares fine-tuned models with hosted ones."""

    def __init__(self, settings: Settings, usage: UsageCosts) -> None:
        self._settings = settings
        self._usage = usage

    async def of(self, job: JobRecord, *, against: str, prompt_tokens_saved: int) -> BreakEven:
        """Raises InvalidRequest for an unknown model to compare with, for prices that are not set, and where the model
        was not asked anything yet; TransitionRefused for a job that has not succeeded."""
        if job.status is not JobState.SUCCEEDED or job.fine_tuned_model is None:
            raise TransitionRefused(
                f"Job {job.id} is {job.status.value}; only one that has succeeded has a model to be paid back."
            )
        hosted = self._hosted(against)
        training = self._training_price(job)
        own = await self._usage.price(job.fine_tuned_model, base=job.model)
        if own is None:
            raise _no_price(f"model_prices has none for '{job.fine_tuned_model}', its base '{job.model}', or '*'")
        mean, requests = await self._mean(job)
        here = own.of(**_tokens(mean))
        there = hosted.of(**_tokens(mean, more=prompt_tokens_saved))
        needed = math.ceil(training / (there - here)) if there > here else None
        return BreakEven(
            job_id=job.id,
            model=job.fine_tuned_model,
            against=against,
            currency=self._settings.currency,
            training_price=round(training, 6),
            measured_requests=requests,
            request=mean,
            prompt_tokens_saved=prompt_tokens_saved,
            price_per_request=round(here, 9),
            hosted_price_per_request=round(there, 9),
            saved_per_request=round(there - here, 9),
            requests_to_break_even=needed,
            requests_left=None if needed is None else max(0, needed - requests),
        )

    def _hosted(self, name: str) -> TokenPrice:
        try:
            return self._settings.hosted_prices[name]
        except KeyError:
            known = ", ".join(sorted(self._settings.hosted_prices)) or "none"
            raise InvalidRequest(
                f"'{name[:100]}' is no hosted model whose prices the operator has set as hosted_prices; those are: "
                f"{known}.",
                code="unknown_hosted_model",
                param="against",
            ) from None

    def _training_price(self, job: JobRecord) -> float:
        price = job.cost.price
        if price is not None:
            return price
        if not self._settings.device_hour_price:
            raise _no_price("device_hour_price is not set")
        return job.device_seconds / 3600 * self._settings.device_hour_price

    async def _mean(self, job: JobRecord) -> tuple[MeanRequest, int]:
        """Return the tokens of a request to the job's model, and how many requests that is of."""
        assert job.fine_tuned_model is not None
        today = datetime.datetime.now(datetime.UTC).date()
        days = Period(today - datetime.timedelta(days=KEEP_DAYS - 1), today)
        used = await self._usage.of_model(job.project, job.fine_tuned_model, days)
        requests = used["requests"]
        if not requests:
            raise InvalidRequest(
                f"'{job.fine_tuned_model}' has answered no request of the project yet, so nothing is measured.",
                code="nothing_measured",
            )
        mean = MeanRequest(
            input_tokens=round(used["input_tokens"] / requests, 3),
            cached_tokens=round(used["cached_tokens"] / requests, 3),
            output_tokens=round(used["output_tokens"] / requests, 3),
        )
        return mean, requests


def _tokens(mean: MeanRequest, *, more: int = 0) -> dict[str, float]:
    return {
        "input_tokens": mean.input_tokens + more,
        "cached_tokens": mean.cached_tokens,
        "output_tokens": mean.output_tokens,
    }


def _no_price(what: str) -> InvalidRequest:
    return InvalidRequest(f"The operator has not set a price that is needed: {what}.", code="no_price")
