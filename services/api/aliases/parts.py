"""What aliases consist of, put together: the aliases, their gates and promotions, monitors and proposals."""

from __future__ import annotations

from dataclasses import dataclass

from services.api.aliases.gated_moves import GatedMoves
from services.api.aliases.gates import Gates
from services.api.aliases.management import Aliases
from services.api.aliases.monitors import Monitors
from services.api.aliases.promoting import PromotionRunner
from services.api.aliases.promotions import Promotions
from services.api.aliases.proposals import Proposals
from services.api.aliases.rechecks import Rechecks
from services.api.aliases.retraining import Retraining
from services.api.aliases.retraining_data import RetrainingData
from services.api.aliases.sample_grading import SampleGrading
from services.api.aliases.tending import Tending
from services.api.aliases.training_inputs import TrainingInputs
from services.api.aliases.warming import Warming
from services.api.aliases.watching import Watching
from services.api.core import Core
from services.api.evals.parts import EvalParts


@dataclass(frozen=True)
class AliasParts:
    """Handlers ask for one by its name here."""

    aliases: Aliases
    promotions: Promotions
    promotion_runner: PromotionRunner
    proposals: Proposals
    watching: Watching
    tending: Tending

    @classmethod
    def open(cls, core: Core, measured: EvalParts) -> AliasParts:
        at, settings = core.stores, core.settings
        warming = Warming(at.registry, at.presence)
        aliases = Aliases(
            at.alias_store,
            at.registry,
            core.names,
            warming,
            gates=Gates(at.eval_store, at.files, at.gate_runs, at.audit_store),
            monitors=Monitors(core.graders, core.names),
        )
        rechecks = Rechecks(at.promotion_store, at.gate_runs, measured.eval_runs)
        proposals, watching = _watching(core)
        return cls(
            aliases=aliases,
            promotions=Promotions(at.promotion_store, at.alias_store, aliases, rechecks),
            promotion_runner=PromotionRunner(
                at.promotion_store,
                at.promotion_store.leases(ttl_s=settings.lease_ttl_s),
                core.leftovers(core.paths.flows_of(at.promotion_store.kind)),
                core.drain,
                moves=GatedMoves(at.alias_store, aliases, warming, at.registry, at.gate_runs, at.audit_store),
                eval_runs=measured.eval_runs,
                run_store=at.eval_run_store,
                gate_runs=at.gate_runs,
                rechecks=rechecks,
            ),
            proposals=proposals,
            watching=watching,
            tending=Tending(
                core.client, at.alias_store, [rechecks.begin_if_due, watching.tend, proposals.tend], core.drain
            ),
        )

    def start(self) -> None:
        self.promotion_runner.start()
        self.tending.start()

    async def close(self) -> None:
        await self.promotion_runner.close()
        await self.tending.close()


def _watching(core: Core) -> tuple[Proposals, Watching]:
    """Put together what grades samples, and what proposes to train anew."""
    at = core.stores
    inputs = TrainingInputs(at.registry, at.jobs, at.files, core.blobs)
    data = RetrainingData(at.completions, at.files, core.blobs)
    retraining = Retraining(at.alias_samples, data, inputs, at.jobs, at.projects, core.submission)
    proposals = Proposals(at.proposal_store, retraining)
    grading = SampleGrading(at.alias_samples, at.completions, core.graders)
    return proposals, Watching(at.alias_samples, grading, inputs, proposals)
