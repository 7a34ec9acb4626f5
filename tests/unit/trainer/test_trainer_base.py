"""Finding the base model, and saying what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from services.trainer.base.description import describe_base
from services.trainer.base.prepare import resolve_base
from services.trainer.failures import TrainingFailed
from shared.paths import Paths
from shared.settings import Settings


def test_folder_is_used_in_place_and_named_after_itself(tiny_base: Path, tmp_path: Path) -> None:
    record = resolve_base(Settings(base_model=str(tiny_base)), Paths(tmp_path))
    assert (record.id, record.path) == (tiny_base.name, str(tiny_base))
    assert (record.architecture, record.context_length) == ("LlamaForCausalLM", 256)
    assert record.parameters > 50_000
    named = resolve_base(Settings(base_model=str(tiny_base), base_model_id="org/tiny"), Paths(tmp_path))
    assert named.id == "org/tiny" and named.fingerprint == record.fingerprint


def test_fingerprint_follows_architecture_and_vocabulary(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    assert describe_base(copy, "b").fingerprint == describe_base(tiny_base, "a").fingerprint
    config = msgspec.json.decode((copy / "config.json").read_bytes())
    (copy / "config.json").write_bytes(msgspec.json.encode({**config, "num_hidden_layers": 3}))
    assert describe_base(copy, "b").fingerprint != describe_base(tiny_base, "a").fingerprint


def test_folder_without_safetensors_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_base / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"code could hide here")
    with pytest.raises(TrainingFailed, match=r"no \*.safetensors"):
        describe_base(tmp_path, "b")


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"config\.json"):
        describe_base(tmp_path, "b")
