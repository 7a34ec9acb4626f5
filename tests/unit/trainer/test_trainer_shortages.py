"""Before the first step, and when memory or disk run short: what was short, what to lower, and nothing lost."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from services.trainer.data.chat import Example
from services.trainer.data.dataset import Dataset
from services.trainer.failures import NonFiniteLoss
from services.trainer.protocol import (
    CHECKPOINTS_FOLDER,
    SPEC_FILE,
    Exported,
    Failed,
    Finish,
    Message,
    Rehearsed,
    Started,
    Stepped,
    TrainSpec,
    encode_line,
    encoder,
)
from services.trainer.shortages import advice, shortage
from services.trainer.training import child, run_job
from services.trainer.training.checkpoints import saved_points
from services.trainer.training.rehearsal import DRY_TOKENS, Rehearsal, few_rows
from tests.unit.trainer.test_trainer_loop import stop_after, supervised, train
from tests.unit.trainer.tiny import make_spec, training_rows, write_rows


def run_child(folder: Path, spec: TrainSpec, hear: Callable[[Message], None] = lambda _: None) -> list[Message]:
    """Run a job as the training process does, to its end."""
    torch.set_num_threads(1)
    (folder / SPEC_FILE).write_bytes(encoder.encode(spec))
    messages: list[Message] = []

    def report(message: Message) -> None:
        messages.append(message)
        hear(message)

    child.main(folder, report, lambda: False, io.BytesIO(encode_line(Finish())))
    return messages


def test_rehearsal_changes_nothing_and_tells_the_loss_to_start_from(tiny_base: Path, tmp_path: Path) -> None:
    plain = train(make_spec(tiny_base, tmp_path / "a", dropout=0.3, n_epochs=4), tmp_path / "a")
    spec = make_spec(tiny_base, tmp_path / "b", dropout=0.3, n_epochs=4)
    messages = run_child(tmp_path / "b", spec)
    assert [type(message) for message in messages[:3]] == [Started, Rehearsed, Stepped]
    steps = [message.metrics.train_loss for message in messages if isinstance(message, Stepped)]
    assert steps == [metrics.train_loss for metrics in plain.steps]
    rehearsed = messages[1]
    assert isinstance(rehearsed, Rehearsed)
    fresh = supervised(spec).evaluate(plain.loop.data.valid)
    assert (rehearsed.full_valid_loss, rehearsed.full_valid_mean_token_accuracy) == (fresh.loss, fresh.accuracy)
    assert 0 < rehearsed.seconds < 10 and rehearsed.peak_memory_bytes > 50 << 20


def test_rehearsal_reads_the_longest_rows_and_no_large_validation_file(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tiny_base, tmp_path, n_epochs=1)
    session, data = supervised(spec), run_job.load_data(spec)
    read: list[tuple[str, list[int]]] = []
    for name in ("forward_backward", "evaluate"):
        act = getattr(session, name)

        def watched(rows: list, name: str = name, act: Callable = act) -> object:  # type: ignore[type-arg]
            read.append((name, [row.width for row in rows]))
            return act(rows)

        monkeypatch.setattr(session, name, watched)
    rehearsed = Rehearsal(session, spec, data).run(baseline=True)
    assert rehearsed.full_valid_loss is None
    widths = {kind: sorted((row.width for row in rows), reverse=True)[:4] for kind, rows in vars_of(data)}
    assert read == [("forward_backward", widths["train"]), ("evaluate", widths["valid"])]
    assert all(parameter.grad is None for parameter in session.parameters.values())


def test_rehearsal_reads_a_few_rows_forward_where_memory_is_ample(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(tiny_base, tmp_path, n_epochs=1, memory_parts={"runtime": 10**6})
    session, data = supervised(spec), run_job.load_data(spec)
    monkeypatch.setattr(session, "forward_backward", lambda _: pytest.fail("nothing is to be tried"))
    rehearsed = Rehearsal(session, spec, data).run(baseline=True)
    assert not rehearsed.longest_rows
    few = few_rows(data.train)
    assert few == data.train[: len(few)] and sum(row.n_tokens for row in few) <= DRY_TOKENS
    short = replace(spec, memory_parts={"runtime": 10**15})
    with pytest.raises(pytest.fail.Exception, match="nothing is to be tried"):
        Rehearsal(session, short, data).run(baseline=True)


def test_advice_follows_what_most_of_the_memory_is_for(tiny_base: Path, tmp_path: Path) -> None:
    parts = {"runtime": 10**8, "weights": 6 * 10**9, "activations": 10**9}
    spec = make_spec(tiny_base, tmp_path, memory_parts=parts)
    assert advice(spec).startswith(
        "It was estimated to need 7.1 GB, 6.0 GB of them for the base's weights. To need less: set "
        "selftune.quantization to nf4; raise"
    )
    wide = replace(spec, memory_parts={"adapter": 10**9})
    assert "To need less: lower selftune.rank (now 4); raise" in advice(wide)
    assert advice(replace(spec, memory_parts={})).startswith("To need less: raise")


def vars_of(data: Dataset[Example]) -> Iterator[tuple[str, list[Example]]]:
    yield "train", list(data.train)
    yield "valid", list(data.valid)


def test_base_that_gives_no_finite_loss_is_found_before_any_training(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path)
    session, data = supervised(spec), run_job.load_data(spec)
    session.model.head.weight_VD.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="Before any training"):
        Rehearsal(session, spec, data).run(baseline=True)


def test_memory_that_is_not_enough_names_what_to_lower(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "services.trainer.training.session.TrainingSession.forward_backward", lambda *_: torch.empty(10**15)
    )
    messages = run_child(tmp_path, make_spec(tiny_base, tmp_path, batch_size=8))
    assert [type(message) for message in messages] == [Started, Failed], "found before the first step"
    failed = messages[-1]
    assert isinstance(failed, Failed) and failed.code == "out_of_memory"
    assert "raise selftune.gradient_accumulation_steps (now 1; up to the batch_size of 8" in failed.message
    assert "lower selftune.max_length (now 128)" in failed.message
    assert "selftune.quantization to nf4" in failed.message


def test_shortages_are_told_from_other_errors(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, batch_size=4, gradient_accumulation_steps=4, quantization="nf4")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), OSError(12, "Cannot allocate memory")):
        found = shortage(error, spec)
        assert found is not None and found.code == "out_of_memory"
    assert shortage(RuntimeError("shapes do not match"), spec) is None
    assert shortage(OSError(2, "No such file"), spec) is None
    full = shortage(OSError(28, "No space left on device"), spec)
    assert full is not None and full.code == "disk_full"
    assert "lower batch_size (now 4)" in advice(spec) and "nf4" not in advice(spec)
    assert "batch_size" not in advice(replace(spec, batch_size=1, gradient_accumulation_steps=1))


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Have the kernel refuse to let a file grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_ends_the_job_with_that_reason_and_earlier_resume_points_are_whole(
    tiny_base: Path, tmp_path: Path
) -> None:
    whole = train(make_spec(tiny_base, tmp_path / "a"), tmp_path / "a")
    folder = tmp_path / "b"
    spec = make_spec(tiny_base, folder)
    train(spec, folder, stop_after(8))
    with files_of_at_most(60_000):
        messages = run_child(folder, spec)
    failed = messages[-1]
    assert isinstance(failed, Failed) and failed.code == "disk_full" and "disk is full" in failed.message
    assert [point.name for point in saved_points(folder / CHECKPOINTS_FOLDER)] == ["step-00000008", "step-00000006"]
    assert not list(folder.rglob(".partial-*"))
    rest = train(spec, folder)
    assert rest.exports[-1].sha256 == whole.exports[-1].sha256


def test_full_disk_at_an_export_leaves_no_partial_adapter(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, rank=16, validation_path=None)

    def hear(message: Message) -> None:
        if isinstance(message, Stepped) and message.metrics.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    with files_of_at_most(resource.RLIM_INFINITY):
        messages = run_child(tmp_path, spec, hear)
    failed = messages[-1]
    assert isinstance(failed, Failed) and failed.code == "disk_full"
    assert list((tmp_path / "adapters").iterdir()) == []
    assert [m.final for m in run_child(tmp_path, spec) if isinstance(m, Exported)] == [False, True]


def test_whole_job_of_one_row_can_be_rehearsed(tiny_base: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny_base, tmp_path, n_epochs=1, batch_size=1, validation_path=None)
    write_rows(Path(spec.training_path), training_rows(1))
    kinds = [type(message) for message in run_child(tmp_path, spec)]
    assert kinds == [Started, Rehearsed, Stepped, Exported]
