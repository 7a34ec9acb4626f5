"""What is noted of what a model is asked: enough to compare many conversations, too little to read one.

The text itself is not kept. Words are counted by a hash in one of BUCKETS classes, so that a rare word says no more
than that one of its class was there.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

BUCKETS = 128
_MOST_CHARS = 32_768
"""So much of a text is looked at, except for its length."""
_MOST_WORDS = 1000
"""So many words are counted: a long text must not drown the others."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""Where a script has no spaces between words, each of its signs counts as one."""

_SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "THAI", "HANGUL", "HIRAGANA",
    "KATAKANA", "CJK",
)  # fmt: skip
_FREQUENT = {
    "en": "the of and to in is that it for you with what how this are can",
    "de": "der die das und ist nicht ein eine ich zu mit den wie für sie auf",
    "fr": "le la les des et est une pas que je vous dans pour du comment avec",
    "es": "el los las que y en un una es por con para como se del está",
    "it": "il che di è non per un una gli sono con come del della mi ho",
    "pt": "o os que não e um uma em para com é do da como você por",
    "nl": "de het een en van is dat niet ik te met voor op zijn hoe je",
}
"""The commonest words of languages in Latin letters."""
_WORDS = {language: frozenset(words.split()) for language, words in _FREQUENT.items()}
_LEAST_WORDS = 2
"""So many words of a language's commonest must be there before the text is taken for it."""


class Traits(Struct, frozen=True, kw_only=True):
    """What is noted of one conversation up to its answer."""

    length: int
    """Characters."""
    language: str
    """A language's code where common words give it away, else the script's name; `none` without letters."""
    symbols: float
    """Share of the characters that are neither letters nor spaces, from 0 to 1."""
    words: dict[int, int]
    """How many words are in each class, by its number below BUCKETS."""


def traits_of(text: str) -> Traits:
    """Note what is compared of a text."""
    seen = text[:_MOST_CHARS]
    words = _WORD.findall(seen.lower())
    others = sum(count for char, count in Counter(seen).items() if not (char.isalpha() or char.isspace()))
    return Traits(
        length=len(text),
        language=_language(seen, words),
        symbols=others / len(seen) if seen else 0.0,
        words=dict(
            Counter(zlib.crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS for word in words[:_MOST_WORDS])
        ),
    )


def asked_text(messages: Sequence[Any]) -> str:
    """Return what users say in a conversation: the texts of their messages, one after the other."""
    texts = [_text(one.get("content")) for one in messages if isinstance(one, dict) and one.get("role") == "user"]
    return "\n".join(texts)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _language(text: str, words: Sequence[str]) -> str:
    script = _script(text)
    if script != "latin":
        return script
    counts = {language: sum(map(common.__contains__, words)) for language, common in _WORDS.items()}
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] >= _LEAST_WORDS else script


def _script(text: str) -> str:
    names: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            names[unicodedata.name(char, "").partition(" ")[0]] += count
    if not names:
        return "none"
    found = names.most_common(1)[0][0]
    return found.lower() if found in _SCRIPTS else "other"
