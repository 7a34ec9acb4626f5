from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from services.inference.engine.punica_cpu import (  # noqa: E402
    FEW_MIXED_ROWS,
    FEW_ROWS,
    GroupedPunicaWrapperCPU,
    Plan,
    plan_few,
    plan_rows,
)

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 8, (6, 2, 2)
SCALE = 0.5


@pytest.mark.parametrize("rank", [1, 4, 8, 17])
@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([], id="empty"),
        pytest.param([-1, -1], id="base only"),
        pytest.param([2], id="one token in the last slot"),
        pytest.param([-1, 2, -1], id="base around the last slot"),
        pytest.param([0, 0, 0, 1, 1], id="two prompts"),
        pytest.param([0, 1, 0, 1, 0, 1, -1, 2, -1, 2, 0], id="finely mixed"),
        pytest.param([0, 2, -1, 2, 0], id="a slot between them unused"),
        pytest.param([0, 1, -1, 2] * (FEW_MIXED_ROWS // 4), id="as many mixed rows as are few"),
        pytest.param([0, 1, -1, 2] * FEW_MIXED_ROWS, id="many rows, finely mixed"),
        pytest.param([0] * (FEW_ROWS + 1), id="many rows of one adapter"),
    ],
)
def test_each_row_gets_its_own_adapter_and_base_rows_are_not_touched(slots: list[int], rank: int) -> None:
    torch.manual_seed(0)
    lora_a = tuple(torch.randn(SLOTS, 1, rank, INPUTS) for _ in WIDTHS)
    lora_b = tuple(torch.randn(SLOTS, 1, width, rank) for width in WIDTHS)
    x, y = torch.randn(len(slots), INPUTS), torch.randn(len(slots), sum(WIDTHS))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [b[slot, 0] @ (a[slot, 0] @ x[row]) for a, b in zip(lora_a, lora_b, strict=True)]
            expected[row] += SCALE * torch.cat(parts)
    before = y.clone()
    _wrapper(slots).add_lora_linear(y, x, lora_a, lora_b, SCALE, WIDTHS)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    base_rows = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base_rows], before[base_rows])


def test_contiguous_rows_are_used_in_place() -> None:
    assert plan_rows([1, 1, -1, 0]) == Plan(((1, 0, 2), (0, 3, 4)))


def test_mixed_rows_cost_one_product_per_adapter() -> None:
    plan = plan_rows([0, 1, 0, 1, -1, 0])
    assert plan.spans == ((0, 0, 3), (1, 3, 5))
    assert plan.rows is not None
    assert plan.rows.tolist() == [0, 2, 5, 1, 3]


def test_few_rows_are_grouped_the_same_way() -> None:
    few = plan_few([0, 1, 0, 1, -1, 0, 3])
    assert (few.rows.tolist(), few.bounds.tolist(), few.slots.tolist()) == ([0, 2, 5, 1, 3, 6], [0, 3, 5, 6], [0, 1, 3])


def test_an_overflowing_adapter_leaves_the_rows_beside_it_alone() -> None:
    lora_a, lora_b = (torch.full((2, 1, RANK, INPUTS), 1e38),), (torch.ones(2, 1, 6, RANK),)
    lora_a[0][0] = 0.5
    y = torch.zeros(3, 6)
    wrapper = _wrapper([1, -1, 0])
    wrapper.add_lora_linear(y, torch.full((3, INPUTS), 10.0), lora_a, lora_b, 1.0, (6,))
    assert torch.isinf(y[0]).all()
    assert y[1].tolist() == [0.0] * 6
    assert y[2].tolist() == [RANK * INPUTS * 5.0] * 6


def test_what_is_written_into_a_slot_later_counts() -> None:
    lora_a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS) for _ in WIDTHS)
    lora_b = tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS)
    wrapper, x = _wrapper([2, 2]), torch.randn(2, INPUTS)
    with torch.inference_mode():
        wrapper.add_lora_linear(torch.zeros(2, sum(WIDTHS)), x, lora_a, lora_b, 1.0, WIDTHS)
        for matrix in (*lora_a, *lora_b):
            matrix[2] = 0
        lora_a[1][2, 0, :1].copy_(torch.ones(1, INPUTS))
        lora_b[1][2, 0, :, :1].copy_(torch.ones(WIDTHS[1], 1))
        y = torch.zeros(2, sum(WIDTHS))
        wrapper.add_lora_linear(y, x, lora_a, lora_b, 1.0, WIDTHS)
    assert not y[:, : WIDTHS[0]].any()
    torch.testing.assert_close(y[:, WIDTHS[0] : sum(WIDTHS[:2])], x.sum(1, keepdim=True).expand(2, WIDTHS[1]))


def _wrapper(slots: list[int]) -> GroupedPunicaWrapperCPU:
    wrapper = GroupedPunicaWrapperCPU(max_num_batched_tokens=1024, max_batches=16, device="cpu")
    wrapper.plan(slots)
    return wrapper
