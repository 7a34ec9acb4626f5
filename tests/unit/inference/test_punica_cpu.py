from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from services.inference.engine.punica_cpu import GroupedPunicaWrapperCPU, Part, Plan, plan_rows  # noqa: E402

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
        pytest.param([0, 2, -1, 2, 0], id="a slot between them unused"),
        pytest.param([0, 1, -1, 2] * 30, id="many rows, finely mixed"),
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
    _wrapper(slots).add_lora_linear(y, x, lora_a, lora_b, SCALE, WIDTHS)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    base_rows = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base_rows], before[base_rows])


def test_rows_of_one_adapter_are_used_in_place() -> None:
    assert plan_rows([-1, 1, 1, -1]) == Plan((Part(1, 2, 1, 3),))


def test_few_mixed_rows_share_their_products() -> None:
    (part,) = plan_rows([1, 2, -1, 1]).parts
    assert (part.first, part.last, part.start, part.end) == (1, 3, 0, 4)
    assert part.own is not None
    assert part.own[:, 0, :, 0].tolist() == [[True, False], [False, True], [False, False], [True, False]]


def test_slots_between_those_in_use_are_not_read() -> None:
    assert [(part.first, part.last) for part in plan_rows([0, 3, 1, 0]).parts] == [(0, 2), (3, 4)]


def test_many_mixed_rows_cost_one_product_per_adapter() -> None:
    slots = [0, 1, 0, 1, -1, 0] * 50
    plan = plan_rows(slots)
    assert [(part.first, part.start, part.end) for part in plan.parts] == [(0, 0, 150), (1, 150, 250)]
    assert plan.rows is not None
    assert [slots[row] for row in plan.rows.tolist()] == [0] * 150 + [1] * 100


def test_long_prompts_are_used_in_place() -> None:
    assert plan_rows([0] * 300 + [-1] + [1] * 300) == Plan((Part(0, 1, 0, 300), Part(1, 2, 301, 601)))


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
    wrapper._plan = plan_rows(slots)
    return wrapper
