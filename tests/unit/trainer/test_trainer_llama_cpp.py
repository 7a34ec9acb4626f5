"""GGUF files, read by the real llama.cpp, which the package xllamacpp holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.unit.trainer.adapters import greedy, save_adapter, with_adapter
from tests.unit.trainer.test_trainer_gguf import LLAMA3_ROPE, TEXTS, change_config, sentencepiece
from tests.unit.trainer.test_trainer_standalone import take
from tests.unit.trainer.tiny_models import save_tiny_model

ANSWER_TOKENS = 8
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("architecture", ["llama", "smollm", "qwen2", "qwen3", "mistral"])
def test_llama_cpp_reads_and_answers_the_same(architecture: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    check(base, save_adapter(base, tmp_path / "adapter"), *TEXTS)


def test_llama_cpp_reads_sentencepiece_the_same(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mistral")
    adapter = save_adapter(base, tmp_path / "adapter")
    sentencepiece().save_pretrained(base)
    check(base, adapter, "the cat sat there", "a catsat", "x 漢", "that  hat")


def test_llama_cpp_rotates_as_llama_3_does(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    change_config(base, rope_parameters=LLAMA3_ROPE)
    check(base, adapter, "what is a red dog " * 12)


def check(base: Path, adapter: Path, *texts: str) -> None:
    """Compare tokens of texts, and the greedy answers to them, with those of transformers and PEFT."""
    file = take(adapter, base.parent / "m.gguf", gguf="f32")
    command = [sys.executable, "-m", "tests.unit.trainer.llama_cpp", str(file), str(ANSWER_TOKENS), *texts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    model, tokenizer = with_adapter(base, adapter), AutoTokenizer.from_pretrained(base)
    for text, found in zip(texts, json.loads(done.stdout.splitlines()[-1]), strict=True):
        tokens = tokenizer(text).input_ids
        answer = greedy(model, torch.tensor([tokens]), ANSWER_TOKENS)[0]
        ends = [place for place, token in enumerate(answer, 1) if token in tokenizer.all_special_ids]
        assert found["tokens"] == tokens
        # llama.cpp stops at tokens that it knows from elsewhere to be ends, such as <|end|>.
        assert len(found["answer"]) in (*ends, ANSWER_TOKENS)
        assert found["answer"] == answer[: len(found["answer"])]
