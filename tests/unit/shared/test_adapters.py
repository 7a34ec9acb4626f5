"""Which adapters are refused before an engine sees them, and with what reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.adapter_form import read_form
from shared.adapters import CONFIG_NAME, WEIGHTS_NAME, adapter_digest, verify_adapter
from shared.errors import AdapterRejected
from tests.adapter_files import CONFIG, HIDDEN, Q, lora, write_adapter, write_base, write_safetensors


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_fitting_adapter_is_accepted(adapter: Path, base: Path) -> None:
    config = verify_adapter(
        adapter, base_folder=base, base_id="tiny", max_rank=4, expected_sha256=adapter_digest(adapter)
    )
    assert config.r == 4


def test_digest_changes_with_every_byte(adapter: Path) -> None:
    before = adapter_digest(adapter)
    weights = bytearray((adapter / WEIGHTS_NAME).read_bytes())
    weights[-1] ^= 1
    (adapter / WEIGHTS_NAME).write_bytes(weights)
    assert adapter_digest(adapter) != before


def cut(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-10])


def option(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / CONFIG_NAME).write_text(json.dumps(CONFIG | values))

    return change


def tensors(shapes: dict[str, list[int]]) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / WEIGHTS_NAME, shapes)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "truncated or damaged"),
        (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b"") and None, "not a safetensors file"),
        (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b"\xff" * 64) and None, "not a safetensors file"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "cannot be read"),
        (lambda folder: (folder / CONFIG_NAME).write_text("{") and None, CONFIG_NAME),
        (option(base_model_name_or_path="other"), "trained for 'other', this server has 'tiny'"),
        (option(peft_type="IA3"), "not a LoRA adapter"),
        (option(use_dora=True), "DoRA"),
        (option(bias="all"), "biases"),
        (option(modules_to_save=["lm_head"]), "modules_to_save"),
        (option(init_lora_weights="pissa"), "initialisation"),
        (option(r=64), "its rank is 64, this server takes 1 to 4"),
        (option(rank_pattern={"k_proj": 9}), "its rank is 9"),
        (tensors({}), "no tensors"),
        (tensors(lora(Q, 4, HIDDEN // 2, HIDDEN)), "does not fit the base's"),
        (tensors(lora(Q, 4, HIDDEN, HIDDEN * 2)), "does not fit the base's"),
        (tensors(lora(Q, 8, HIDDEN, HIDDEN)), "does not fit the base's"),
        (tensors(lora("model.layers.7.self_attn.q_proj", 4, HIDDEN, HIDDEN)), "it is for another base"),
        (tensors(lora("lm_head", 4, HIDDEN, HIDDEN)), "not served"),
        (tensors({f"base_model.model.{Q}.lora_A.weight": [4, HIDDEN]}), "its other half"),
        (tensors({f"base_model.model.{Q}.weight": [4, HIDDEN]}), "not a LoRA weight"),
        (tensors({f"base_model.model.{Q}.lora_A.weight": []}), "does not fit the base's"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[" * 100_000) and None, CONFIG_NAME),
    ],
)
def test_unfit_adapter_is_refused_with_its_reason(
    adapter: Path, base: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(adapter)
    with pytest.raises(AdapterRejected) as caught:
        verify_adapter(adapter, base_folder=base, base_id="tiny", max_rank=4)
    assert reason in caught.value.message


@pytest.mark.parametrize("name", ["x" * 10_000, f"base_model.model.{'x' * 10_000}.q_proj.lora_A.weight"])
def test_reason_repeats_no_long_name(adapter: Path, base: Path, name: str) -> None:
    write_safetensors(adapter / WEIGHTS_NAME, {name: [4, HIDDEN]})
    with pytest.raises(AdapterRejected) as caught:
        verify_adapter(adapter, base_folder=base, base_id="tiny", max_rank=4)
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    ("values", "is_fit"),
    [
        ({"lora_alpha": 40_000}, True),
        ({"lora_alpha": 40_001}, False),
        ({"lora_alpha": -40_001}, False),
        ({"lora_alpha": 20_001, "use_rslora": True}, False),
        ({"lora_alpha": 10**400}, False),
        ({"r": 10**400}, False),
        ({"alpha_pattern": {"q_proj": 1e300}}, False),
        ({"lora_alpha": 20_000, "rank_pattern": {"q_proj": 1}}, False),
        ({"rank_pattern": {"q_proj": 0}}, False),
    ],
)
def test_scale_is_one_that_numbers_can_hold(values: dict[str, object], is_fit: bool) -> None:
    raw = json.dumps(CONFIG | values).encode()
    if is_fit:
        assert read_form(raw).scale_of("q_proj") == 10_000
        return
    with pytest.raises(AdapterRejected):
        read_form(raw)


def test_replaced_bytes_are_noticed(adapter: Path, base: Path) -> None:
    with pytest.raises(AdapterRejected, match="damaged or replaced"):
        verify_adapter(adapter, base_folder=base, base_id="tiny", max_rank=4, expected_sha256="0" * 64)
