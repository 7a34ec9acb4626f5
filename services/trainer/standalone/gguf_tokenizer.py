"""A tokenizer as GGUF has it: a vocabulary with types, merges or scores, and the name of how text is split.

GGUF knows two kinds of byte-pair encoding: `gpt2`, on bytes and after a split that has a name, and `llama`, on
characters with a mark for spaces (sentencepiece). What fits neither is refused: it would read text otherwise.
"""

from __future__ import annotations

import json
import re
from typing import Any

import gguf
from transformers import PreTrainedTokenizerFast

from services.trainer.standalone import ExportRefused

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES, _WORDS_AND_BYTES = ("ByteLevel", False), ("ByteLevel", True)
# llama.cpp's names (llama-vocab.cpp) for the steps in which a text is split before the merges.
_SPLITS: dict[tuple[Any, ...], str] = {
    (_WORDS_AND_BYTES,): "gpt-2",
    (("Digits", True), _WORDS_AND_BYTES): "smollm",
    (("Split", _WORDS + r"|\p{N}{1,3}" + _REST), _BYTES): "llama-bpe",
    (("Split", _WORDS + r"|\p{N}" + _REST), _BYTES): "qwen2",
    (("Split", _TEKKEN), _BYTES): "tekken",
}
_Parts = dict[str, Any]


def describe_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Write all that a reader needs to make the same tokens; `rows` is the number of embeddings.

    Raises ExportRefused for a tokenizer that GGUF cannot express.
    """
    parts: _Parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise ExportRefused(f"its tokenizer is of the kind {model['type']}, of which GGUF files are not written")
    if model.get("byte_fallback"):
        _describe_sentencepiece(writer, parts, rows)
    else:
        _describe_bytes(writer, parts, rows)
    _describe_specials(writer, tokenizer, rows)


def _describe_bytes(writer: gguf.GGUFWriter, parts: _Parts, rows: int) -> None:
    steps = _steps(parts["pre_tokenizer"])
    normalizer = (parts["normalizer"] or {}).get("type")
    if steps not in _SPLITS or normalizer not in (None, "NFC"):
        raise ExportRefused(f"its tokenizer splits text in a way that has no name in GGUF: {normalizer}, {steps}")
    tokens, types = _vocabulary(parts, rows)
    merges = _merges(parts["model"])
    if any(" " in piece for pair in merges for piece in pair):
        raise ExportRefused("its tokenizer merges pieces with spaces in them, which GGUF cannot write")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_SPLITS[steps])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_add_space_prefix(False)


def _describe_sentencepiece(writer: gguf.GGUFWriter, parts: _Parts, rows: int) -> None:
    tokens, types = _vocabulary(parts, rows)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(_scores(parts, tokens))
    writer.add_token_types(types)
    writer.add_add_space_prefix(_puts_space_first(parts))


def _describe_specials(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None and token < rows:
            getattr(writer, f"add_{name}_token_id")(token)
    bare, whole = (tokenizer("a", add_special_tokens=chosen)["input_ids"] for chosen in (False, True))
    begins = len(whole) > len(bare) and whole[0] == tokenizer.bos_token_id
    ends = len(whole) > len(bare) and whole[-1] == tokenizer.eos_token_id
    if whole != [tokenizer.bos_token_id] * begins + bare + [tokenizer.eos_token_id] * ends:
        raise ExportRefused(f"its tokenizer puts tokens around a text that GGUF has no word for: {whole}")
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(ends)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _steps(pre_tokenizer: _Parts | None) -> tuple[Any, ...]:
    """Reduce a pre-tokenizer to what decides how it splits; what is not known is shown as it is."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for part in pre_tokenizer["pretokenizers"] for step in _steps(part))
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return (("ByteLevel", pre_tokenizer.get("use_regex", True)),)
    if kind == "Digits":
        return (("Digits", pre_tokenizer["individual_digits"]),)
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return (("Split", pre_tokenizer["pattern"].get("Regex")),)
    return (str(pre_tokenizer),)


def _vocabulary(parts: _Parts, rows: int) -> tuple[list[str], list[int]]:
    """Return the tokens by number and their types; numbers without a token are filled up.

    Added tokens that have no embedding, which no model can read, are left out.
    """
    by_number = {number: token for token, number in parts["model"]["vocab"].items()}
    if max(by_number) >= rows:
        raise ExportRefused(f"its tokenizer has {max(by_number) + 1} tokens, the model {rows} embeddings")
    added = {token["id"]: token for token in parts["added_tokens"] if token["id"] < rows}
    by_number |= {number: token["content"] for number, token in added.items()}
    tokens = [by_number.get(number, f"[PAD{number}]") for number in range(rows)]
    return tokens, [_type(number, by_number, added, parts["model"]) for number in range(rows)]


def _type(number: int, by_number: dict[int, str], added: dict[int, _Parts], model: _Parts) -> int:
    token = by_number.get(number)
    if token is None:
        kind = gguf.TokenType.UNUSED
    elif token == model.get("unk_token"):
        kind = gguf.TokenType.UNKNOWN
    elif number in added:
        kind = gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED
    elif model.get("byte_fallback") and _BYTE.fullmatch(token):
        kind = gguf.TokenType.BYTE
    else:
        kind = gguf.TokenType.NORMAL
    return int(kind)


def _merges(model: _Parts) -> list[tuple[str, str]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def _scores(parts: _Parts, tokens: list[str]) -> list[float]:
    """Return scores that rank the pieces as the merges that make them do.

    A reader joins the neighbours whose piece has the highest score, whichever two they are: so all the merges that
    make a piece must lie together, and any two pieces that are a third must be a merge. Raises ExportRefused if not.
    """
    vocabulary, merges = parts["model"]["vocab"], _merges(parts["model"])
    pieces = [left + right for left, right in merges]
    order = list(dict.fromkeys(pieces))
    blocks = sum(before != piece for before, piece in zip(["", *pieces], pieces, strict=False))
    added = {token["content"] for token in parts["added_tokens"]}
    possible = sum(
        piece[:cut] in vocabulary and piece[cut:] in vocabulary
        for piece in vocabulary
        if piece not in added and not _BYTE.fullmatch(piece)
        for cut in range(1, len(piece))
    )
    if blocks != len(order) or possible != len(set(merges)):
        raise ExportRefused("its tokenizer's merges are not those of sentencepiece, which GGUF assumes for this kind")
    ranks = {piece: -float(rank) for rank, piece in enumerate(order)}
    return [ranks.get(token, -1e4 - len(order)) for token in tokens]


def _puts_space_first(parts: _Parts) -> bool:
    """Whether a text is read as if a space stood before it. Raises ExportRefused for other ways to mark spaces."""
    normalizer, pre_tokenizer = parts["normalizer"], parts["pre_tokenizer"]
    steps = (normalizer or {}).get("normalizers") or ([normalizer] if normalizer else [])
    kinds = [step["type"] for step in steps]
    if pre_tokenizer is None and kinds in (["Prepend", "Replace"], ["Replace"]):
        return "Prepend" in kinds
    if not kinds and pre_tokenizer and pre_tokenizer["type"] == "Metaspace" and not pre_tokenizer.get("split", True):
        return bool(pre_tokenizer["prepend_scheme"] != "never")
    raise ExportRefused(f"its tokenizer marks spaces in a way that GGUF has no word for: {kinds}, {pre_tokenizer}")
