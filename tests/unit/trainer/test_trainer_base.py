"""Finding the base model, and saying what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from services.trainer.base.description import describe_base
from services.trainer.base.prepare import resolve_base
from services.trainer.data.loading import TokenSource
from services.trainer.failures import TrainingFailed
from services.trainer.training.model import load_base
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


def test_hub_that_may_not_be_called_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    settings = Settings(base_model="org/unknown-base", outgoing_hosts=["hooks.example.com"])
    with pytest.raises(TrainingFailed, match=r"'huggingface\.co' is none of those .*outgoing_hosts"):
        resolve_base(settings, Paths(tmp_path))


def test_code_that_comes_with_a_base_is_not_run(tiny_base: Path, tmp_path: Path) -> None:
    """Whatever its configuration names under `auto_map` stays where it is: the class of this library is taken."""
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    (copy / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Evil: pass\n"
    )
    config = msgspec.json.decode((copy / "config.json").read_bytes())
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    (copy / "config.json").write_bytes(msgspec.json.encode({**config, "auto_map": classes}))
    tokenizer = msgspec.json.decode((copy / "tokenizer_config.json").read_bytes())
    (copy / "tokenizer_config.json").write_bytes(
        msgspec.json.encode({**tokenizer, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    describe_base(copy, "b")
    TokenSource(str(copy), "", "supervised")
    loaded: Any = load_base(copy, torch.float32)
    assert loaded.config.model_type == config["model_type"]
    (copy / "config.json").write_bytes(msgspec.json.encode({**config, "model_type": "evil", "auto_map": classes}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_base(copy, torch.float32)
    assert not (tmp_path / "ran").exists()
