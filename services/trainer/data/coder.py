"""Text -> token ids, exactly as the tokenizer has them, but mostly from memory.

A tokenizer cuts a text at its added tokens before it does anything else, and works on each piece alone. Byte-level
tokenizers of the GPT family then cut again, among other places before each space that follows a word. So a text is the
sum of its added tokens and of its words, and most words of a file were met before: looking them up costs a tenth of
tokenising them. A tokenizer of which this is not known is asked for the whole text.

Ids are little-endian int32 in bytes, which the interpreter joins, compares and counts without looking at one.
"""

from __future__ import annotations

import re
from array import array
from typing import Any, Final

import msgspec

ID_BYTES: Final = 4
_MAX_WORDS = 1 << 18
"""Words remembered by a process, some 40 MB; then it starts anew."""
_LONGEST_WORD = 64
_MAX_TEXTS = 256
"""Whole texts remembered, for what many rows share: system prompts, and what a template writes."""
_LONGEST_TEXT = 1 << 14
"""Characters of a text that is remembered, so that all of them take some 40 MB at most."""

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_BLANKS = r"|\s+(?!\S)|\s+"
_KNOWN_PATTERNS = frozenset(
    {
        _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _BLANKS,  # GPT-2
        *(
            f"(?i:{_CONTRACTIONS})" + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            + _BLANKS
            for digits in (r"\p{N}", r"\p{N}{1,3}")  # Qwen2, Llama 3
        ),
    }
)  # fmt: skip
"""No match of these has a blank behind another character, but for line ends: a space behind a word starts a new one."""
_BETWEEN_WORDS = re.compile(r" (?<=\S )(?=\S)")


class Words(dict[str, bytes]):
    """The ids of texts met so far."""

    def __init__(self, coder: Coder, before: str) -> None:
        self._coder = coder
        self._before = before

    def __missing__(self, word: str) -> bytes:
        ids = self._coder.ask(self._before + word)
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


class Coder:
    """A tokenizer of the transformers library, without its wrapper. Not for several threads at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        added = list(tokenizer.added_tokens_decoder.items())
        plain = not any(token.lstrip or token.rstrip or token.single_word for _, token in added)
        # Tokens that are sought in the normalised text come second; they are left to the tokenizer.
        first = {token.content: _pack([number]) for number, token in added if not token.normalized}
        nested = any(one != other and one in other for one in first for other in first)
        self.cuts = self._backend is not None and plain and bool(first) and not nested
        """Whether a text is the sum of what lies before an added token and of the rest."""
        self._added = first
        self._pattern = re.compile("|".join(map(re.escape, sorted(first, key=len, reverse=True))) or r"(?!)")
        self._split_added = re.compile(f"({self._pattern.pattern})").split
        self._beginnings = tuple({text[:stop] for text in first for stop in range(1, len(text))})
        has_blanks = any(re.search(r"\s", token.content) for _, token in added)
        self._has_words = self.cuts and not has_blanks and _cuts_before_spaces(self._backend)
        self._first_words = Words(self, "")
        self._later_words = Words(self, " ")
        self._texts: dict[str, bytes] = {}
        self._safe_ends: dict[str, bool] = {}
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.no_truncation()
        self.opening = self._opening()
        """The ids that a server puts before a prompt that is no conversation."""

    def ask(self, text: str) -> bytes:
        """Let the tokenizer do all of it."""
        if self._backend is not None:
            return _pack(self._backend.encode(text, add_special_tokens=False).ids)
        return _pack(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _opening(self) -> bytes:
        if self._backend is None:
            return b""
        whole = _pack(self._backend.encode("a", add_special_tokens=True).ids)
        alone = self.ask("a")
        return whole[: next((at for at in range(0, len(whole), ID_BYTES) if whole.startswith(alone, at)), 0)]

    def encode(self, text: str) -> bytes:
        """Return the ids of a text, without any that a tokenizer would put around it."""
        return self.join(self.parts(text)) if self.cuts else self.ask(text)

    def parts(self, text: str) -> list[str]:
        """Cut a text at its added tokens: text, token, text, token, …, text; only where `cuts`."""
        return self._split_added(text)

    def join(self, parts: list[str]) -> bytes:
        """Return the ids of parts(); the first of them is empty or the beginning of the whole text."""
        if not self._has_words:
            # Some tokenizers treat the very beginning of a text differently: a token and what follows it stay together.
            pairs = map("".join, zip(parts[1::2], parts[2::2], strict=True))
            return self.words(parts[0]) + b"".join(map(self._first_words.__getitem__, pairs))
        ids: list[bytes] = [b""] * len(parts)
        ids[::2] = map(self.words, parts[::2])
        ids[1::2] = map(self._added.__getitem__, parts[1::2])
        return b"".join(ids)

    def words(self, text: str) -> bytes:
        """Return the ids of a text without added tokens."""
        if not text:
            return b""
        if not self._has_words:
            return self._first_words[text]
        known = self._texts.get(text)
        if known is not None:
            return known
        first, *later = _BETWEEN_WORDS.split(text)
        ids = self._first_words[first] + b"".join(map(self._later_words.__getitem__, later))
        if len(text) <= _LONGEST_TEXT:
            if len(self._texts) >= _MAX_TEXTS:
                self._texts.clear()
            self._texts[text] = ids
        return ids

    def starts_added(self, text: str, place: int) -> bool:
        """Whether an added token stands at `place`."""
        return self._pattern.match(text, place) is not None

    def ends_safely(self, text: str) -> bool:
        """Whether no added token can begin in `text`, of which a copy is kept, and end behind it."""
        known = self._safe_ends.get(text)
        if known is None:
            known = not text.endswith(self._beginnings)
            if len(self._safe_ends) < _MAX_WORDS and len(text) <= _LONGEST_WORD:
                self._safe_ends[text] = known
        return known


def _pack(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _cuts_before_spaces(backend: Any) -> bool:
    """Whether the tokenizer begins a new piece at each space that stands alone between two other characters."""
    if backend.normalizer is not None and _state(backend.normalizer) != {"type": "NFC"}:
        return False
    if backend.pre_tokenizer is None:
        return False
    whole = _state(backend.pre_tokenizer)
    steps: list[dict[str, Any]] = whole["pretokenizers"] if whole["type"] == "Sequence" else [whole]
    return all(map(_is_known, steps)) and any(
        step["type"] == "Split" or (step["type"] == "ByteLevel" and step["use_regex"]) for step in steps
    )


def _is_known(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "ByteLevel":
            return not step["add_prefix_space"]
        case "Digits":
            return True
        case "Split":
            known = step["pattern"].get("Regex") in _KNOWN_PATTERNS
            return known and step["behavior"] == "Isolated" and not step["invert"]
    return False


def _state(component: Any) -> dict[str, Any]:
    return dict(msgspec.json.decode(component.__getstate__()))
