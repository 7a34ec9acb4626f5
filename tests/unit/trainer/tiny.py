"""A random two-layer Llama with a tokenizer trained on the spot, and small conversations for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.trainer.protocol import TrainSpec
from shared.training_data import ChatExample

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nBe helpful<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}"
    "<|im_start|>assistant\n(left out)<|im_end|>\n{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COLOURS = ("red", "green", "blue", "white")
KINDS = {"apple": "fruit", "dog": "animal", "plum": "fruit", "cat": "animal", "pear": "fruit", "horse": "animal"}


def tiny_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 400 tokens, trained on the rows below."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [message["content"] for row in training_rows(40) for message in row["messages"]]
    tokenizer.train_from_iterator([*corpus, "system user assistant Be helpful"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = template
    return fast


def save_tiny_base(folder: Path, *, template: str = CHATML) -> Path:
    """Write a base model folder, about 0.5 MB, with the same random weights each time."""
    tokenizer = tiny_tokenizer(template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_rows(count: int) -> list[dict[str, Any]]:
    """Questions whose answer follows from one word; lengths differ."""
    words = list(KINDS)
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": f"what is a {COLOURS[i % 4]} {words[i % len(words)]}" + " please" * (i % 5),
                },
                {"role": "assistant", "content": KINDS[words[i % len(words)]]},
            ]
        }
        for i in range(count)
    ]


def preference_rows(count: int) -> list[dict[str, Any]]:
    """The same questions, each with the right answer and the wrong one."""
    other = {"fruit": "animal", "animal": "fruit"}
    rows = [row["messages"] for row in training_rows(count)]
    return [
        {
            "input": {"messages": messages[:-1]},
            "preferred_output": [messages[-1]],
            "non_preferred_output": [{"role": "assistant", "content": other[messages[-1]["content"]]}],
        }
        for messages in rows
    ]


def labelled_rows(count: int) -> list[dict[str, Any]]:
    """The same questions: two in three with the right answer and the label true, the others with the wrong one."""
    rows = preference_rows(count)
    return [
        {
            "messages": [*row["input"]["messages"], *row["non_preferred_output" if i % 3 == 1 else "preferred_output"]],
            "label": i % 3 != 1,
        }
        for i, row in enumerate(rows)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def conversation(*turns: tuple[str, str] | tuple[str, str, int]) -> ChatExample:
    """Build a row from (role, content) or (role, content, weight)."""
    messages = [dict(zip(("role", "content", "weight"), turn, strict=False)) for turn in turns]
    return msgspec.convert({"messages": messages}, ChatExample)


def make_spec(base: Path, folder: Path, **changes: Any) -> TrainSpec:
    """Describe a job of a few fast steps on 24 rows, 6 held out."""
    values: dict[str, Any] = {
        "job_id": "ftjob-tiny", "base_id": "tiny", "base_folder": str(base), "base_fingerprint": "f",
        "adapters_folder": str(folder / "adapters"),
        "training_path": str(write_rows(folder / "train.jsonl", training_rows(24))),
        "validation_path": str(write_rows(folder / "valid.jsonl", training_rows(6))),
        "n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 4.0, "seed": 7, "rank": 4, "alpha": 8,
        "max_length": 128,
    }  # fmt: skip
    return TrainSpec(**{**values, **changes})
