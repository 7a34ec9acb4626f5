"""Turn the English part of the Python package chatterbot-corpus into a topic task for fine-tuning.

Each example asks for the topic of one line of conversation, and the answer is one word. The topic is the name of the
corpus file that the line comes from, so the labels are as good as that sorting, no better.

    python examples/chatterbot_topics.py OUT_FOLDER

writes train.jsonl, validation.jsonl and test.jsonl. A line goes to its split by the hash of its normalised text: a
rerun gives the same split, and no text is in two of them. Lines that stand under two topics are left out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

TOPICS = ("ai", "coding", "emotion", "literature", "money", "science", "sports", "trivia")
INSTRUCTION = f"Answer with the topic of the message, one of: {', '.join(TOPICS)}."
MAX_PER_TOPIC = 130
MIN_CHARACTERS, MAX_CHARACTERS = 10, 120
_SPLITS = {0: "validation", 1: "test", 2: "test"}  # by hash modulo 10; the rest trains


def corpus_folder() -> Path:
    """Find the installed corpus without importing it. Raises FileNotFoundError with the command that installs it."""
    found = importlib.util.find_spec("chatterbot_corpus")
    if found is None or found.origin is None:
        raise FileNotFoundError("the data set is missing: pip install 'selftune[demo]'")
    return Path(found.origin).parent / "data" / "english"


def lines(topic: str) -> Iterator[str]:
    """Yield every line of a topic's conversations, questions and answers alike."""
    content = yaml.safe_load((corpus_folder() / f"{topic}.yml").read_text(encoding="utf-8"))
    for conversation in content["conversations"]:
        yield from (" ".join(str(turn).split()) for turn in conversation)


def labelled() -> dict[str, str]:
    """Return topic by line, for short lines that stand under one topic only."""
    topics: dict[str, set[str]] = defaultdict(set)
    spelling: dict[str, str] = {}
    for topic in TOPICS:
        for line in lines(topic):
            normal = re.sub(r"[^a-z0-9]+", " ", line.lower()).strip()
            if MIN_CHARACTERS <= len(line) <= MAX_CHARACTERS and normal:
                topics[normal].add(topic)
                spelling.setdefault(normal, line)
    return {spelling[normal]: next(iter(found)) for normal, found in topics.items() if len(found) == 1}


def split(examples: dict[str, str]) -> dict[str, list[dict[str, object]]]:
    """Deal the examples to the splits, at most MAX_PER_TOPIC of a topic, in an order that depends on hashes only."""
    dealt: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    taken: dict[str, int] = defaultdict(int)
    for digest, line in sorted((_digest(line), line) for line in examples):
        topic = examples[line]
        if taken[topic] < MAX_PER_TOPIC:
            taken[topic] += 1
            dealt[_SPLITS.get(digest % 10, "train")].append(_example(line, topic))
    return dealt


def _digest(line: str) -> int:
    normal = re.sub(r"[^a-z0-9]+", " ", line.lower()).strip()
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big")


def _example(line: str, topic: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": line},
            {"role": "assistant", "content": topic},
        ]
    }


def write(folder: Path) -> dict[str, Path]:
    """Write the splits as JSONL and return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, examples in split(labelled()).items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return paths


if __name__ == "__main__":
    for name, path in write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")).items():
        print(f"{name}: {len(path.read_text().splitlines())} examples in {path}")
