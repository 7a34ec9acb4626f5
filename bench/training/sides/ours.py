"""Ours: a TrainingSession, as the loop of a job uses it."""

from __future__ import annotations

from pathlib import Path

from bench.training.work import Answer, Clock, Work, run
from services.trainer.training.child import forget_bitsandbytes


def train(work: Work) -> Answer:
    if work.quantization == "none":
        forget_bitsandbytes()
    from services.trainer.training.model import build_model
    from services.trainer.training.objectives import Preference, Supervised
    from services.trainer.training.reading import Reader
    from services.trainer.training.references import with_reference
    from services.trainer.training.run_job import load_data, load_pairs
    from services.trainer.training.session import TrainingSession

    spec = spec_of(work)
    model = build_model(spec)
    if model.plain_because:
        raise SystemExit(f"the model is not on the fast path: {model.plain_because}")
    reader = Reader(model)
    if work.method == "dpo":
        preference = Preference(reader, work.beta)
        pairs = with_reference(load_pairs(spec), preference, Path(work.jsonl).with_suffix(".reference"), lambda: False)
        return repeat(work, TrainingSession(preference), pairs.train)
    if work.method == "orpo":
        from services.trainer.training.orpo import Orpo

        return repeat(work, TrainingSession(Orpo(reader, work.beta)), load_pairs(spec).train)
    if work.method == "kto":
        return judged(work, spec, reader)
    return repeat(work, TrainingSession(Supervised(reader)), load_data(spec).train)


def judged(work: Work, spec, reader) -> Answer:
    """KTO, whose rows get each other's answers batch by batch, as TRL has it, so that both do the same work."""
    from services.trainer.data.dataset import Dataset
    from services.trainer.data.labelled import with_mismatched
    from services.trainer.training.references import with_reference
    from services.trainer.training.run_job import load_labelled, make_kto
    from services.trainer.training.session import TrainingSession

    loaded = load_labelled(spec).train
    rows = []
    for at in range(0, len(loaded), work.batch_size):
        batch = loaded[at : at + work.batch_size]
        rows += with_mismatched(
            [row.example for row in batch], [row.is_desirable for row in batch], max_length=spec.max_length
        )
    kto = make_kto(spec, reader)
    known = with_reference(Dataset(rows, []), kto, Path(work.jsonl).with_suffix(".reference"), lambda: False)
    return repeat(work, TrainingSession(kto), known.train)


def spec_of(work: Work):
    from services.trainer.protocol import TrainSpec

    return TrainSpec(
        job_id="ftjob-bench", base_id="base", base_folder=work.base, base_fingerprint="", adapters_folder="",
        training_path=work.jsonl, n_epochs=1, batch_size=work.batch_size, learning_rate_multiplier=1.0, seed=work.seed,
        method=work.method, beta=work.beta, rank=work.rank, alpha=work.alpha, targets=work.targets,
        quantization=work.quantization, finetuning_type=work.finetuning_type,
    )  # fmt: skip


def repeat(work: Work, session, rows) -> Answer:
    clock = Clock(work)
    for step in range(work.total_steps):
        places = range(step * work.batch_size, (step + 1) * work.batch_size)
        measured = session.forward_backward([rows[place % len(rows)] for place in places])
        session.optim_step(work.rate)
        clock.step()
        clock.answer.losses.append(measured.loss)
    return clock.finish()


if __name__ == "__main__":
    run(train, "torch", "transformers", "peft")
