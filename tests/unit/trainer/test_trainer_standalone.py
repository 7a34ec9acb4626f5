"""A fine-tuned model taken home: what it computes is what base and adapter compute; what cannot be, is refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.base.description import describe_base
from services.trainer.base.weights import weights_digest
from services.trainer.standalone import ExportRefused
from services.trainer.standalone.exporting import Request, export
from shared.adapters import adapter_digest
from shared.paths import Paths
from shared.records import AdapterRecord
from shared.settings import Settings
from shared.store.client import Client
from shared.store.registry import Registry
from tests.unit.trainer.adapters import greedy, logits, save_adapter, with_adapter
from tests.unit.trainer.tiny_models import ARCHITECTURES, save_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


def take(adapter: Path, to: Path, **options: Any) -> Path:
    return export(Request(str(adapter), to, **options), Settings(data_dir=str(to.parent / "data")))


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


# --- what it computes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_model_is_base_and_adapter(architecture: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    adapter = save_adapter(base, tmp_path / "adapter")
    merged, apart = load(take(adapter, tmp_path / "out", merge=True)), with_adapter(base, adapter)
    expected = logits(apart)
    assert (logits(load(base)) - expected).abs().max() > 0.1, "the adapter changes something"
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert greedy(merged) == greedy(apart)
    tokens = [
        AutoTokenizer.from_pretrained(folder)("what is a red dog").input_ids for folder in (base, tmp_path / "out")
    ]
    assert tokens[0] == tokens[1]


def test_merged_files_are_the_bases_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    """In several files as well, and rounded once, at the end."""
    sharded = tmp_path / "sharded"
    load(base).save_pretrained(sharded, max_shard_size="100KB")
    (sharded / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    out = take(adapter, tmp_path / "out", merge=True, dtype="bfloat16", base=sharded)
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(names) > 2
    assert sorted(path.name for path in out.glob("*.safetensors")) == names
    expected = with_adapter(base, adapter).merge_and_unload().state_dict()
    found = {name: tensor for file in names for name, tensor in load_file(out / file).items()}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), expected[name], atol=1e-6, rtol=2**-8)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in found.values())
    model = load(out)
    assert model.dtype == torch.bfloat16
    assert logits(model).isfinite().all()


def test_adapter_alone_is_what_peft_reads(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = take(adapter, tmp_path / "out")
    assert adapter_digest(out) == adapter_digest(adapter)
    copied = PeftModel.from_pretrained(load(base), str(out)).eval()
    assert torch.equal(logits(copied), logits(with_adapter(base, adapter)))


def test_model_is_found_by_its_name(base: Path, adapter: Path, redis_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), redis_url=redis_url, model_aliases={"mine": "ft:b:o::x"})
    paths = Paths(settings.home)
    digest = adapter_digest(adapter)
    take(adapter, paths.adapter_folder("b", digest))
    described = describe_base(base, "b")
    record = AdapterRecord(
        name="ft:b:o::x", base="b", base_fingerprint=described.fingerprint, sha256=digest, rank=4, project="p",
        folder=paths.relative(paths.adapter_folder("b", digest)), job_id="ftjob-1", created_at=1, listed=True,
    )  # fmt: skip

    async def register() -> None:
        client = Client(redis_url, connections=1)
        await Registry(client).put_base(described)
        await Registry(client).publish(record)
        await client.close()

    asyncio.run(register())
    out = export(Request("mine", tmp_path / "out", merge=True), settings)
    assert json.loads((out / "export.json").read_text())["model"] == "ft:b:o::x"
    assert greedy(load(out)) == greedy(with_adapter(base, adapter))
    weights = paths.adapter_folder("b", digest) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ExportRefused, match="damaged or replaced"):
        export(Request("mine", tmp_path / "again", merge=True), settings)
    with pytest.raises(ExportRefused, match="no fine-tuned model 'ft:nobody'"):
        export(Request("ft:nobody", tmp_path / "again"), settings)


# --- what is refused

Change = Callable[[dict[str, Any]], None]
Tensors = dict[str, torch.Tensor]


def changed(adapter: Path, folder: Path, config: dict[str, Any], rename: Callable[[Tensors], Tensors] = dict) -> Path:
    folder.mkdir()
    before = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(before | config))
    save_file(rename(load_file(adapter / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return folder


def without_one_half(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj.lora_B" not in name}


def of_a_joint_layer(tensors: Tensors) -> Tensors:
    return {name.replace("q_proj", "qkv_proj"): tensor for name, tensor in tensors.items()}


def on_the_embedding(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 8)}


@pytest.mark.parametrize(
    ("config", "rename", "message"),
    [
        ({"use_dora": True}, dict, "use_dora = True is more than a product"),
        ({"bias": "all"}, dict, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, dict, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, dict, "init_lora_weights = 'pissa'"),
        ({"layer_replication": [[0, 1]]}, dict, "layer_replication"),
        ({"something_new": 3}, dict, "something_new = 3"),
        ({"peft_type": "LOHA"}, dict, "peft_type = 'LOHA'"),
        ({"r": 5}, dict, "do not fit its rank of 5"),
        ({}, without_one_half, "one half of model.layers.1.mlp.up_proj"),
        ({"rank_pattern": {"qkv_proj": 2}}, of_a_joint_layer, "no weight for model.layers.0.self_attn.qkv_proj"),
        ({}, on_the_embedding, "lora_embedding_A is no half of a linear layer's"),
    ],
)
def test_more_than_a_product_is_refused(
    config: dict[str, Any], rename: Callable[[Tensors], Tensors], message: str, adapter: Path, tmp_path: Path
) -> None:
    if "rank_pattern" in config:
        config = {"rank_pattern": {**config["rank_pattern"], r"layers\.1\.mlp\.up_proj": 3}}
    with pytest.raises(ExportRefused, match=message):
        take(changed(adapter, tmp_path / "adapter", config, rename), tmp_path / "out", merge=True)
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("adapter", "data")]


def test_adapter_on_an_output_layer_that_is_the_embedding_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "smollm")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(ExportRefused, match="output layer, which in this base is the embedding"):
        take(adapter, tmp_path / "out", merge=True)


def test_adapter_on_an_output_layer_of_its_own_is_merged(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    merged = load(take(adapter, tmp_path / "out", merge=True))
    torch.testing.assert_close(logits(merged), logits(with_adapter(base, adapter)), atol=1e-5, rtol=1e-5)


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "base", "smollm")
    with pytest.raises(ExportRefused, match="has shape"):
        take(adapter, tmp_path / "out", merge=True, base=other)
    (other / "model.safetensors").unlink()
    with pytest.raises(ExportRefused, match=r"holds neither model\.safetensors"):
        take(adapter, tmp_path / "out", merge=True, base=other)


def test_base_of_the_same_shape_with_other_weights_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    (adapter / "manifest.json").write_text(json.dumps({"base_weights": weights_digest(base)}))
    other = take(adapter, tmp_path / "other", merge=True)
    with pytest.raises(ExportRefused, match="another base"):
        take(adapter, tmp_path / "out", merge=True, base=other)


def test_quantised_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = take(adapter, tmp_path / "base", merge=True)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ExportRefused, match="stored quantised"):
        take(adapter, tmp_path / "out", merge=True, base=other)


def test_values_beyond_float16_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = take(adapter, tmp_path / "base", merge=True)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][3] = 70000.0
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportRefused, match=r"model\.norm\.weight has values beyond what float16"):
        take(adapter, tmp_path / "out", merge=True, base=other, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, "goes with --merge"), ({"gguf": "f16"}, r"ends in \.gguf")],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=message):
        take(adapter, tmp_path / "out", **options)


def test_folders_that_are_no_adapters_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"holds no adapter_config\.json"):
        take(tmp_path, tmp_path / "out")
    with pytest.raises(ExportRefused, match="does not answer: start the stack, or give the adapter's folder"):
        export(Request("ft:a:b::c", tmp_path / "out"), Settings(redis_url="unix:///nowhere.sock"))


# --- where it goes


def test_only_an_earlier_export_is_replaced(adapter: Path, tmp_path: Path) -> None:
    empty = tmp_path / "out"
    empty.mkdir()
    out = take(adapter, empty)
    with pytest.raises(ExportRefused, match="--force replaces an export"):
        take(adapter, out, merge=True)
    assert not (out / "config.json").exists()
    take(adapter, out, merge=True, force=True)
    assert (out / "config.json").exists()
    assert not (out / "adapter_config.json").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ExportRefused, match="was not made by an export"):
        take(adapter, tmp_path / "photos", force=True)
    (tmp_path / "letter").touch()
    with pytest.raises(ExportRefused, match="is there already"):
        take(adapter, tmp_path / "letter", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter", "out", "photos"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(adapter: Path, tmp_path: Path) -> None:
    dead, alive = tmp_path / ".partial-out-dead", tmp_path / ".partial-out-alive"
    dead.mkdir()
    alive.mkdir()
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    take(adapter, tmp_path / "out")
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-out-alive", "out"]


@pytest.mark.parametrize("options", [{"merge": True}, {"gguf": "f32"}])
def test_disk_that_takes_no_more_is_told(options: dict[str, Any], adapter: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            take(adapter, tmp_path / "out.gguf", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_write_that_fails_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.trainer.standalone", "--merge", f"--to={tmp_path / 'out'}", str(adapter)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "the disk is full, or takes no file of this size" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
