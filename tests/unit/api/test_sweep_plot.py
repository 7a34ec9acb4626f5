"""The picture of a sweep: sound XML that says what the runs came to, and nothing that could run."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from services.api.sweeps.plot import plot
from services.api.sweeps.ranking import ranked, runner_up
from shared.schemas.sweeps import MetricName
from shared.sweep_records import SweepAxis, SweepRecord, SweepRunRecord

SVG = "{http://www.w3.org/2000/svg}"


def make_sweep(
    axes: list[SweepAxis], values: list[tuple[list[int], float | None]], metric: MetricName = "full_valid_loss"
) -> SweepRecord:
    runs = [SweepRunRecord(job_id=f"j{n}", picks=picks, value=value) for n, (picks, value) in enumerate(values)]
    body = {"model": "b", "training_file": "f"}
    record = SweepRecord(
        id="sweep_1", project="p", created_at=1, body=body, axes=axes, grid_size=len(runs), metric=metric,
        runs=tuple(runs),
    )  # fmt: skip
    return ranked(record)


def axis(name: str, *values: Any) -> SweepAxis:
    return SweepAxis(name=name, path=["x", name], values=list(values))


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


def test_runs_are_ranked_by_the_side_that_is_better() -> None:
    given: list[tuple[list[int], float | None]] = [([0], 0.5), ([1], None), ([2], 0.25), ([3], 0.5)]
    record = make_sweep([axis("n_epochs", 1, 2, 3, 4)], given)
    assert [run.rank for run in record.runs] == [2, None, 1, 2]
    best, second = record.best(), runner_up(record)
    assert best is not None and best.job_id == "j2"
    assert second is not None and second.job_id == "j0"
    upwards = make_sweep([axis("n_epochs", 1, 2, 3, 4)], given, metric="eval_pass_rate")
    assert [run.rank for run in upwards.runs] == [1, None, 3, 1]


def test_each_list_has_a_panel_and_each_value_a_point() -> None:
    axes = [axis("learning_rate_multiplier", 2.0, 0.5), axis("selftune.lr_schedule", "linear", "<script>&\"'\x00")]
    record = make_sweep(axes, [([0, 0], 0.5), ([0, 1], 0.4), ([1, 0], 0.3), ([1, 1], None)])
    drawn = read(plot(record))
    assert {element.tag.removeprefix(SVG) for element in drawn.iter()} <= {
        "svg", "rect", "g", "text", "line", "circle", "title",
    }  # fmt: skip
    points = list(drawn.iter(f"{SVG}circle"))
    assert len(points) == 2 * 3
    texts = [element.text for element in drawn.iter(f"{SVG}text")]
    assert "validation loss (lower is better), 1 of 4 runs without a value" in texts
    assert "learning_rate_multiplier" in texts and "selftune.lr_schedule" in texts
    first = drawn.findall(f"{SVG}g")[0]
    left_to_right = {float(point.get("cx", 0)): point for point in first.iter(f"{SVG}circle")}
    assert "learning_rate_multiplier=0.5" in str(left_to_right[min(left_to_right)].findtext(f"{SVG}title"))
    lowest = max(first.iter(f"{SVG}circle"), key=lambda point: float(point.get("cy", 0)))
    assert (lowest.get("r"), str(lowest.findtext(f"{SVG}title"))[-5:]) == ("6", ": 0.3")


def test_a_sweep_without_values_is_drawn_as_well() -> None:
    drawn = read(plot(make_sweep([axis("seed", 1, 2)], [([0], None), ([1], None)])))
    assert not list(drawn.iter(f"{SVG}circle"))
