"""Which licences `deploy/licences.py` takes packages under."""

from __future__ import annotations

import pytest

from deploy.licences import _identifier, is_allowed


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("mit or gpl-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only OR MIT AND ISC", True),
        ("(GPL-3.0-only OR MIT) AND ISC", True),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("GPL-3.0-only AND (MIT OR Apache-2.0)", False),
        ("((MIT OR GPL-3.0-only) AND (ISC OR LGPL-2.1-only))", True),
        ("(Apache-2.0 WITH LLVM-exception)", True),
        ("(MIT", False),
        ("MIT)", False),
        ("MIT (GPL-3.0-only)", False),
        ("", False),
    ],
)
def test_expressions_are_judged_with_their_parentheses(expression: str, allowed: bool) -> None:
    assert is_allowed(expression) is allowed


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("MIT License", True),
        ("Apache Software License", True),
        ("ISC License (ISCL)", True),
        ("BSD 3-Clause", True),
        ("MPL 2.0", True),
        ("MPL2", True),
        ("Miscellaneous", False),
        ("Permitted for nobody", False),
        ("Summit Terms", False),
    ],
)
def test_names_are_found_as_whole_words(words: str, allowed: bool) -> None:
    assert is_allowed(_identifier(words)) is allowed
