"""Print, as JSON, what plain transformers and PEFT generate greedily: DATA_DIR MODEL TOKENS PROMPT….

MODEL is a fine-tuned model's name, whose adapter is loaded on its base, or the folder of a whole model.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared import embedded_valkey
from shared.records import AdapterRecord, BaseRecord
from shared.store.client import Client
from shared.store.registry import Registry


async def look_up(data_dir: Path, name: str) -> tuple[AdapterRecord, BaseRecord]:
    client = Client(embedded_valkey.url(data_dir / "valkey"))
    registry = Registry(client)
    adapter = await registry.get(name)
    assert adapter is not None
    base = await registry.base(adapter.base)
    assert base is not None
    await client.close()
    return adapter, base


def load(data_dir: Path, name: str) -> tuple[Any, Any]:
    if Path(name).is_dir():
        return AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name).eval()
    adapter, base = asyncio.run(look_up(data_dir, name))
    plain = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(plain, str(data_dir / adapter.folder)).eval()
    return AutoTokenizer.from_pretrained(base.path), tuned


def main(data_dir: str, name: str, tokens: str, *prompts: str) -> None:
    tokenizer, model = load(Path(data_dir), name)
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=int(tokens))
        answer = output[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True))
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
