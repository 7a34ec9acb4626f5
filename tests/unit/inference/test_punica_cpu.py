from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from services.inference.punica_cpu import GroupedPunicaWrapperCPU, Plan, plan_rows  # noqa: E402

SLOTS, RANK, INPUTS, WIDTHS = 3, 4, 8, (6, 2, 2)
SCALE = 0.5


@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([], id="empty"),
        pytest.param([-1, -1], id="base only"),
        pytest.param([2], id="one token in the last slot"),
        pytest.param([-1, 2, -1], id="base around the last slot"),
        pytest.param([0, 0, 0, 1, 1], id="two prompts"),
        pytest.param([0, 1, 0, 1, 0, 1, -1, 2, -1, 2, 0], id="finely mixed"),
    ],
)
def test_each_row_gets_its_own_adapter_and_base_rows_are_not_touched(slots: list[int]) -> None:
    torch.manual_seed(0)
    lora_a = tuple(torch.randn(SLOTS, 1, RANK, INPUTS) for _ in WIDTHS)
    lora_b = tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS)
    x, y = torch.randn(len(slots), INPUTS), torch.randn(len(slots), sum(WIDTHS))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [b[slot, 0] @ (a[slot, 0] @ x[row]) for a, b in zip(lora_a, lora_b, strict=True)]
            expected[row] += SCALE * torch.cat(parts)
    before = y.clone()
    wrapper = GroupedPunicaWrapperCPU(max_num_batched_tokens=64, max_batches=16, device="cpu")
    wrapper._plan = plan_rows(slots)
    wrapper.add_lora_linear(y, x, lora_a, lora_b, SCALE, WIDTHS)
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
