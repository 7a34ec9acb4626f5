"""GGUF files, read back by transformers: the same model, the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from services.trainer.standalone import ExportRefused
from tests.unit.trainer.adapters import PROMPTS, greedy, logits, save_adapter, with_adapter
from tests.unit.trainer.test_trainer_standalone import take
from tests.unit.trainer.tiny import CHATML
from tests.unit.trainer.tiny_models import SLIDING_WINDOW, save_tiny_model

WRITTEN = ("llama", "smollm", "qwen2", "qwen2-sliding", "qwen3", "mistral", "mistral-sliding")
TEXTS = ("what is a red dog", "  two  spaces, 1234 and 5\n\n\tnaïve — 漢字 🙂", "<|im_start|>user\nhi<|im_end|>\n")


def read_back(file: Path, base: Path) -> Any:
    """Load a file as transformers does: Mistral as a Llama, which it is.

    Qwen with the base's configuration, since transformers drops the width of heads and the window; what the file says
    of them is looked at by itself.
    """
    config = AutoConfig.from_pretrained(base)
    options = {"config": config} if config.model_type.startswith("qwen") else {}
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **options).eval()


def fields(file: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("architecture", WRITTEN)
def test_file_is_base_and_adapter(architecture: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    adapter = save_adapter(base, tmp_path / "adapter")
    apart = with_adapter(base, adapter)
    count = 1 if "sliding" in architecture else 12  # the prompts fill the window
    expected, tokens = logits(apart), greedy(apart, count=count)
    model = read_back(take(adapter, tmp_path / "m32.gguf", gguf="f32"), base)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert greedy(model, count=count) == tokens
    half = read_back(take(adapter, tmp_path / "m16.gguf", gguf="f16"), base)
    assert (logits(half) - expected).norm() < 2e-3 * expected.norm()
    assert greedy(half, count=1) == greedy(apart, count=1)


@pytest.mark.parametrize(("kind", "error"), [("bf16", 2**-8), ("q8_0", 0.5 / 127 + 2**-11)])
def test_rounded_file_is_within_its_error(kind: Any, error: float, tmp_path: Path) -> None:
    """Of a value for bfloat16, of its block's largest value for Q8_0; what has no blocks of 32 is float16."""
    base = save_tiny_model(tmp_path / "base", "smollm")
    adapter = save_adapter(base, tmp_path / "adapter")
    merged = with_adapter(base, adapter).merge_and_unload().state_dict()
    file = take(adapter, tmp_path / "model.gguf", gguf=kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types["output_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == ("BF16" if kind == "bf16" else "F16"), "rows of 48"
    assert types["blk.0.ffn_down.weight"] == kind.upper(), "rows of 96"
    for name, values in read_back(file, base).state_dict().items():
        scale = merged[name].abs()
        if kind == "q8_0" and values.shape[-1] % 32 == 0 and values.ndim == 2:
            scale = scale.reshape(-1, 32).amax(1, keepdim=True).expand(-1, 32).reshape(values.shape)
        assert ((values - merged[name]).abs() <= error * scale + 1e-7).all(), name


def test_file_says_what_the_model_is(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "qwen3")
    adapter = save_adapter(base, tmp_path / "adapter")
    ends = [AutoTokenizer.from_pretrained(base).eos_token_id, 5]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    out = take(adapter, tmp_path / "out", merge=True, gguf="f16")
    said = fields(out / "model-f16.gguf")
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert said["general.architecture"] == "qwen3"
    assert said["general.name"] == "adapter"
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert said["qwen3.attention.key_length"] == said["qwen3.attention.value_length"] == 24
    assert said["qwen3.context_length"] == 256
    assert said["qwen3.vocab_size"] == len(tokenizer) == len(said["tokenizer.ggml.tokens"])
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert [said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.eot_token_id"]] == ends
    assert said["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert "tokenizer.ggml.bos_token_id" not in said
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert said["tokenizer.chat_template"] == CHATML
    types = said["tokenizer.ggml.token_type"]
    assert [number for number, kind in enumerate(types) if kind == gguf.TokenType.CONTROL] == list(range(6))


@pytest.mark.parametrize("architecture", ["qwen2-sliding", "mistral-sliding"])
def test_window_becomes_the_context(architecture: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    said = fields(take(save_adapter(base, tmp_path / "adapter"), tmp_path / "m.gguf", gguf="f16"))
    assert said[f"{said['general.architecture']}.context_length"] == SLIDING_WINDOW


@pytest.mark.parametrize(("architecture", "split"), [("llama", "gpt-2"), ("qwen2", "qwen2")])
def test_tokens_are_the_same(architecture: str, split: str, tmp_path: Path) -> None:
    """Qwen's tokenizer brings its own way to split, whatever its files say."""
    base = save_tiny_model(tmp_path / "base", architecture)
    file = take(save_adapter(base, tmp_path / "adapter"), tmp_path / "m.gguf", gguf="f16")
    assert fields(file)["tokenizer.ggml.pre"] == split
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert [before(text).input_ids for text in TEXTS] == [after(text).input_ids for text in TEXTS]
    assert (after.chat_template, after.eos_token, after.pad_token) == (CHATML, before.eos_token, before.pad_token)


SPLITS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def change_tokenizer(base: Path, **parts: Any) -> None:
    path = base / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(path))


@pytest.mark.parametrize("name", SPLITS)
def test_splits_have_names(name: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    bos = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 3)])
    change_tokenizer(base, pre_tokenizer=SPLITS[name], post_processor=bos)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|start|>"}))
    said = fields(take(adapter, tmp_path / "m.gguf", gguf="f16"))
    assert said["tokenizer.ggml.pre"] == name
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.bos_token_id"]) == (True, 3)


def test_split_without_a_name_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    change_tokenizer(base, pre_tokenizer=pre_tokenizers.Whitespace())
    with pytest.raises(ExportRefused, match=r"splits text in a way that has no name in GGUF: .*Whitespace"):
        take(adapter, tmp_path / "m.gguf", gguf="f16")


@pytest.mark.parametrize(("architecture", "named"), [("gemma2", "Gemma2ForCausalLM"), ("olmo2", "Olmo2ForCausalLM")])
def test_other_architectures_are_named(architecture: str, named: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ExportRefused, match=named):
        take(adapter, tmp_path / "m.gguf", gguf="f16")
    assert not (tmp_path / "m.gguf").exists()


def change_config(base: Path, **values: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def test_rotation_of_llama_3_comes_as_divisors(tmp_path: Path) -> None:
    """Frequencies: left alone where waves are short, divided by the factor where they are long, between in between."""
    base = save_tiny_model(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    change_config(base, rope_parameters=LLAMA3_ROPE)
    file = take(adapter, tmp_path / "m.gguf", gguf="f32")
    divisors = next(t.data for t in gguf.GGUFReader(file).tensors if t.name == "rope_freqs.weight")
    waves = 2 * np.pi * 10000 ** (np.arange(0, 16, 2) / 16)
    assert divisors.shape == (8,)
    assert divisors[waves < 64 / 4] == pytest.approx(1)
    assert divisors[waves > 64 / 1] == pytest.approx(8)
    assert ((divisors >= 1 - 1e-6) & (divisors <= 8 + 1e-5)).all()
    change_config(base, rope_parameters={**LLAMA3_ROPE, "rope_type": "yarn"})
    with pytest.raises(ExportRefused, match="rotary embedding 'yarn'"):
        take(adapter, tmp_path / "n.gguf", gguf="f32")


def test_sentencepiece_keeps_its_order_of_merges(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mistral")
    adapter = save_adapter(base, tmp_path / "adapter")
    sentencepiece().save_pretrained(base)
    file = take(adapter, tmp_path / "m.gguf", gguf="f32")
    said = fields(file)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    kinds = said["tokenizer.ggml.token_type"]
    assert kinds[:4] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.BYTE]
    assert kinds[-1] == gguf.TokenType.UNUSED, "the model has more embeddings"
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    texts = ("the cat sat there", "a catsat", "x 漢", "that  hat")
    assert [before(text, add_special_tokens=False).input_ids for text in texts] == [
        after(text, add_special_tokens=False).input_ids for text in texts
    ]
    assert greedy(read_back(file, base), PROMPTS % 300) == greedy(with_adapter(base, adapter), PROMPTS % 300)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExportRefused, match="not those of sentencepiece"):
        take(adapter, tmp_path / "n.gguf", gguf="f32")


def sentencepiece() -> PreTrainedTokenizerFast:
    """A vocabulary as sentencepiece makes them, in the form into which transformers brings it."""
    pieces = ["▁t", "▁th", "▁the", "at", "▁c", "▁cat", "▁s", "▁sat", "he", "hat", "th", "cat", "re", "here"]
    letters = list(dict.fromkeys("▁the cat sat re x".replace(" ", "")))
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    scores = {token: -float(number) for number, token in enumerate(vocabulary)}
    numbers = {token: number for number, token in enumerate(vocabulary)}
    merges = generate_merges(numbers, scores)
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
