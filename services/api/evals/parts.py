"""What evals, A/B runs, preferences and the regrading of rollouts consist of, put together."""

from __future__ import annotations

from dataclasses import dataclass

from services.api.ab_runs.creation import AbRuns
from services.api.ab_runs.report import Reports
from services.api.ab_runs.voting import Voting
from services.api.core import Core
from services.api.evals.comparison import Comparisons
from services.api.evals.creation import EvalRuns
from services.api.evals.definitions import Evals
from services.api.evals.run import Tools
from services.api.evals.runner import EvalRunner
from services.api.evals.sources import Sources
from services.api.preferences.creation import Preferences
from services.api.preferences.export import Exports
from services.api.preferences.sources import OpinionSources
from services.api.rollouts.files import RolloutFiles
from services.api.rollouts.regraded import Regraded
from services.api.rollouts.regrading import Regrading
from services.api.rollouts.summing import Summaries


@dataclass(frozen=True)
class EvalParts:
    """Handlers ask for one by its name here."""

    eval_sources: Sources
    evals: Evals
    eval_runs: EvalRuns
    eval_comparisons: Comparisons
    eval_runner: EvalRunner
    ab_runs: AbRuns
    ab_reports: Reports
    ab_voting: Voting
    preferences: Preferences
    preference_exports: Exports
    rollout_files: RolloutFiles
    rollout_summaries: Summaries
    regrading: Regrading
    regraded: Regraded

    @classmethod
    def open(cls, core: Core) -> EvalParts:
        at, blobs = core.stores, core.blobs
        sources = Sources(at.files, at.completions, blobs)
        runs = EvalRuns(at.eval_store, at.eval_run_store, sources, core.names, core.graders.judges, blobs)
        evals = Evals(at.eval_store, runs, core.graders)
        rollouts = RolloutFiles(blobs)
        tools = Tools.of(core.settings, at, blobs, core.gateway, core.graders)
        opinions = OpinionSources(at.preference_store, at.eval_run_store, at.ab_vote_store)
        return cls(
            eval_sources=sources,
            evals=evals,
            eval_runs=runs,
            eval_comparisons=Comparisons(at.eval_run_store),
            eval_runner=EvalRunner(tools, core.leftovers(core.paths.evals), core.drain),
            ab_runs=AbRuns(at.eval_store, at.eval_run_store, at.files, runs, core.graders),
            ab_reports=Reports(at.eval_run_store, at.ab_vote_store),
            ab_voting=Voting(at.eval_run_store, at.ab_vote_store),
            preferences=Preferences(at.preference_store),
            preference_exports=Exports(opinions, core.uploads),
            rollout_files=rollouts,
            rollout_summaries=Summaries(rollouts),
            regrading=Regrading(rollouts, core.uploads, core.graders, core.names, evals, runs, at.eval_run_store),
            regraded=Regraded(at.eval_store, at.eval_run_store),
        )

    def start(self) -> None:
        self.eval_runner.start()

    async def close(self) -> None:
        await self.eval_runner.close()
