"""The data sets, made from a seed: text of common words, as long as asked for, in OpenAI's formats.

    shared   32 chats that begin with one system prompt of 67 tokens; 6,049 tokens, 1,133 of them learnt
    mixed    32 chats of 60 to 600 tokens that begin differently
    pairs    32 preference pairs; prompts of 60 to 240 tokens, answers of 20 to 60
    judged   32 chats of the same lengths, every other one with the label true

The figures are those of SmolLM2's tokenizer; with another one they differ a little.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "that",
    "with",
    "as",
    "by",
    "at",
    "from",
    "this",
    "an",
    "are",
    "which",
    "or",
    "had",
    "first",
    "not",
    "have",
    "one",
    "were",
    "all",
    "they",
    "their",
    "also",
    "after",
    "two",
    "been",
    "more",
    "who",
    "city",
    "time",
    "other",
    "when",
    "there",
    "new",
    "school",
    "about",
    "some",
    "would",
    "only",
    "made",
    "part",
    "over",
    "most",
    "year",
    "world",
    "state",
    "people",
    "used",
    "may",
    "know",
    "where",
    "work",
    "between",
    "during",
    "under",
    "many",
    "these",
    "then",
    "life",
    "three",
    "later",
    "place",
    "both",
    "high",
    "each",
    "water",
    "house",
    "family",
    "number",
    "music",
    "following",
    "against",
    "home",
    "second",
    "well",
    "until",
    "end",
    "game",
    "same",
    "become",
    "small",
    "long",
    "system",
    "team",
    "group",
    "great",
    "while",
    "line",
    "found",
    "since",
    "night",
    "public",
    "power",
    "area",
    "came",
    "being",
    "such",
    "land",
    "river",
    "large",
    "several",
    "order",
    "town",
    "early",
    "young",
    "black",
    "open",
    "white",
    "name",
    "left",
    "field",
    "north",
    "south",
    "local",
    "common",
    "form",
    "church",
    "best",
    "early",
    "building",
]
SYSTEM = (
    "You answer questions of the people who use our library. Be brief and friendly, say where a thing is to be found, "
    "and never promise what the house does not have. If you do not know an answer, say so, and send them to the desk "
    "on the first floor, open."
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """A data set on disk, and what is in it. `tokens_per_row` counts both sides of a pair."""

    jsonl: Path
    tokens: Path
    tokens_per_row: tuple[int, ...]
    learnt: int


def write(name: str, folder: Path, base: Path) -> Data:
    """Make the data set `name` and tokenise it with nothing but transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = MAKERS[name](random.Random(name))
    jsonl = write_jsonl(folder / f"{name}.jsonl", rows)
    if name == "pairs":
        prepared = [_pair_text(row, tokenizer) for row in rows]
        sides = [[_ids(tokenizer, row["prompt"] + row[key]) for key in ("chosen", "rejected")] for row in prepared]
        counts = tuple(sum(map(len, pair)) for pair in sides)
        learnt = sum(len(_ids(tokenizer, row[key])) for row in prepared for key in ("chosen", "rejected"))
    elif name == "judged":
        prepared = [_judged_text(row, tokenizer) for row in rows]
        counts = tuple(len(_ids(tokenizer, row["prompt"] + row["completion"])) for row in prepared)
        learnt = sum(len(_ids(tokenizer, row["completion"])) for row in prepared)
    else:
        prepared = [_labelled(row["messages"], tokenizer) for row in rows]
        counts = tuple(len(row["input_ids"]) for row in prepared)
        learnt = sum(label != -100 for row in prepared for label in row["labels"])
    tokens = folder / f"{name}.tokens.json"
    tokens.write_text(json.dumps(prepared))
    return Data(jsonl, tokens, counts, learnt)


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chats(count: int, order: random.Random) -> list[Row]:
    """Any number of chats of the kind of `shared`."""
    lengths = [(49 + 2 * (13 * i % 32), 19 + 7 * i % 32) for i in range(count)]
    return [_chat(SYSTEM, _text(order, asked, asked), _text(order, answer, answer)) for asked, answer in lengths]


def _mixed(order: random.Random) -> list[Row]:
    lengths = [round(60 * 10 ** (i / 31)) for i in range(32)]
    order.shuffle(lengths)
    rows = []
    for length in lengths:
        answer = max(8, length // 5)
        system = " ".join(order.sample(WORDS, 8))
        rows.append(_chat(system, _text(order, *[length - answer - 26] * 2), _text(order, answer, answer)))
    return rows


def _pairs(order: random.Random) -> list[Row]:
    return [
        {
            "input": {"messages": _chat(" ".join(order.sample(WORDS, 8)), _text(order, 40, 220), "")["messages"][:-1]},
            "preferred_output": [{"role": "assistant", "content": _text(order, 20, 60)}],
            "non_preferred_output": [{"role": "assistant", "content": _text(order, 20, 60)}],
        }
        for _ in range(32)
    ]


def _judged(order: random.Random) -> list[Row]:
    return [
        {**_chat(" ".join(order.sample(WORDS, 8)), _text(order, 40, 220), _text(order, 20, 60)), "label": i % 2 == 0}
        for i in range(32)
    ]


MAKERS = {"shared": lambda order: chats(32, order), "mixed": _mixed, "pairs": _pairs, "judged": _judged}


def _chat(system: str, asked: str, answer: str) -> Row:
    turns = zip(("system", "user", "assistant"), (system, asked, answer), strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _text(order: random.Random, shortest: int, longest: int) -> str:
    """So many words; nearly all of them are one token."""
    return " ".join(order.choices(WORDS, k=order.randint(shortest, longest)))


def _labelled(messages: list[dict[str, str]], tokenizer: Any) -> Row:
    """Tokens up to the end of the answer, and labels of -100 for what is not the answer."""
    prompt, answer = _prompt(messages[:-1], tokenizer), _answer(messages[-1], tokenizer)
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _pair_text(row: Row, tokenizer: Any) -> Row:
    sides = {"chosen": row["preferred_output"][0], "rejected": row["non_preferred_output"][0]}
    prompt = tokenizer.decode(_prompt(row["input"]["messages"], tokenizer))
    return {"prompt": prompt, **{key: tokenizer.decode(_answer(turn, tokenizer)) for key, turn in sides.items()}}


def _judged_text(row: Row, tokenizer: Any) -> Row:
    *asked, answer = row["messages"]
    prompt, completion = _prompt(asked, tokenizer), _answer(answer, tokenizer)
    return {"prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(completion), "label": row["label"]}


def _prompt(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    return _ids(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _answer(message: dict[str, str], tokenizer: Any) -> list[int]:
    return _ids(tokenizer, message["content"] + tokenizer.eos_token)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
