"""Lists in a sweep's body: found, combined, picked from, and put into the requests of jobs."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.sweeps.grid import (
    Body,
    check_size,
    check_values,
    chosen,
    find_axes,
    grid_size,
    job_request,
    without_lists,
)
from shared.errors import InvalidRequest


def body(**more: Any) -> Body:
    return {"model": "base", "training_file": "file-a", "validation_file": "file-b", **more}


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_every_combination_becomes_a_job() -> None:
    given = body(
        method=supervised(n_epochs=[1, 2], learning_rate_multiplier=[0.5, 1.0, 2.0], batch_size=4),
        selftune={"rank": [4, 8], "target_modules": ["q_proj", "v_proj"]},
        seed=3,
    )
    axes = find_axes(given)
    assert [axis.name for axis in axes] == ["n_epochs", "learning_rate_multiplier", "selftune.rank"]
    picks = chosen(axes, n_runs=None, seed=0)
    assert len(picks) == grid_size(axes) == 12
    requests = [job_request(without_lists(given, axes), axes, one) for one in picks]
    found = set()
    for request in requests:
        assert request.method is not None and request.method.supervised is not None
        hyperparameters = request.method.supervised.hyperparameters
        assert (hyperparameters.batch_size, request.seed) == (4, 3)
        assert request.options.target_modules == ["q_proj", "v_proj"]
        found.add((hyperparameters.n_epochs, hyperparameters.learning_rate_multiplier, request.options.rank))
    assert found == {(epochs, rate, rank) for epochs in (1, 2) for rate in (0.5, 1.0, 2.0) for rank in (4, 8)}
    assert given["method"]["supervised"]["hyperparameters"]["n_epochs"] == [1, 2]


def test_lists_are_found_wherever_a_job_has_hyperparameters() -> None:
    own = {"method": {"type": "kto", "kto": {"hyperparameters": {"beta": [0.1, 0.2]}}}, "alpha": [8, 16]}
    assert [axis.name for axis in find_axes(body(selftune=own))] == ["beta", "selftune.alpha"]
    assert [axis.name for axis in find_axes(body(hyperparameters={"n_epochs": [1, 2]}, seed=[1, 2]))] == [
        "seed", "n_epochs",
    ]  # fmt: skip
    modules = [["q_proj"], ["q_proj", "v_proj"]]
    assert find_axes(body(selftune={"target_modules": modules}))[0].values == modules
    ignored = {**supervised(n_epochs=[1, 2]), "dpo": {"hyperparameters": {"beta": [0.1, 0.2]}}}
    assert [axis.name for axis in find_axes(body(method=ignored))] == ["n_epochs"]


def test_picks_are_of_the_grid_without_repetition_and_the_same_for_the_same_seed() -> None:
    axes = find_axes(body(method=supervised(n_epochs=list(range(1, 51)), learning_rate_multiplier=[0.1, 1.0, 10.0])))
    first, again, other = (chosen(axes, n_runs=20, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({tuple(one) for one in first}) == 20
    assert all(one[0] < 50 and one[1] < 3 for one in first)
    few = find_axes(body(method=supervised(n_epochs=[1, 2])))
    assert chosen(few, n_runs=20, seed=1) == [[0], [1]]


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({}, "method", "nothing to sweep over"),
        ({"method": supervised(n_epochs=[])}, "method.supervised.hyperparameters.n_epochs", "1 to 1000 values"),
        ({"method": supervised(n_epochs=[2, 2])}, "method.supervised.hyperparameters.n_epochs", "a value twice"),
        ({"method": supervised(n_epochs=[1]), "hyperparameters": {"n_epochs": [2]}}, "hyperparameters.n_epochs", "too"),
        ({"selftune": {"rank": list(range(1, 66))}}, "sweep.n_runs", "65 combinations"),
    ],
)
def test_bad_lists_are_refused_by_name(given: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        chosen(find_axes(body(**given)), n_runs=None, seed=0)
    assert caught.value.param == param


def test_bad_value_in_a_list_is_refused_as_a_job_would_be() -> None:
    given = body(method=supervised(n_epochs=[1, 99]))
    axes = find_axes(given)
    rest = without_lists(given, axes)
    assert job_request(rest, axes, [0]).training_file == "file-a"
    with pytest.raises(InvalidRequest) as caught:
        job_request(rest, axes, [1])
    assert caught.value.param == "method.supervised.hyperparameters.n_epochs"


def test_value_that_no_run_has_picked_is_refused_all_the_same() -> None:
    given = body(method=supervised(n_epochs=[1, 2, "many"]), selftune={"rank": [4, 8]})
    axes = find_axes(given)
    rest = without_lists(given, axes)
    check_values(rest, [axes[1]], [[0]])
    with pytest.raises(InvalidRequest) as caught:
        check_values(rest, axes, [[0, 0], [1, 1]])
    assert caught.value.param == "method.supervised.hyperparameters.n_epochs"


def test_body_that_is_too_long_or_too_deep_is_refused_by_field() -> None:
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    check_size(body(method=supervised(n_epochs=[1, 2])))
    for given, param in [
        (body(selftune={"rank": nested}), "selftune"),
        (body(method=supervised(x="y" * 66_000), seed=[1]), "method"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            check_size(given)
        assert (caught.value.code, caught.value.param) == ("invalid_value", param)
