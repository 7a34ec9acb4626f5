"""Formulas of multi graders: arithmetic, with every way to go wrong a clear error."""

from __future__ import annotations

import math

import pytest

from shared.grading.formula import MAX_CHARS, FormulaError, check, compute, is_name

SCORES = {"a": 0.5, "b": 2.0, "zero": 0.0}


@pytest.mark.parametrize(
    ("formula", "result"),
    [
        ("a", 0.5),
        ("a + b * 2", 4.5),
        ("(a + b) * 2", 5.0),
        ("b - a - a", 1.0),
        ("b / a / 2", 2.0),
        ("b ^ 3 ^ 2", 512.0),  # from the right, and before the sign
        ("-b ^ 2", -4.0),
        ("b ^ -1", 0.5),
        ("2 * b ^ 2 + 1", 9.0),
        ("+a - -b", 2.5),
        ("min(a, b, 1) + max(a, b)", 2.5),
        ("min(a)", 0.5),
        ("abs(-a) + floor(a) + ceil(a)", 1.5),
        ("exp(zero) + sqrt(b * b) + log(exp(b))", 5.0),
        ("1e3 * .5", 500.0),
        ("0.7 * a\n  + 0.3 * min(b, 1)", 0.65),
        ("1_000", 1000.0),
    ],
)
def test_formulas_are_computed(formula: str, result: float) -> None:
    check(formula, SCORES)
    assert compute(formula, SCORES) == pytest.approx(result, rel=1e-12)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("1 / zero", "divides by zero"),
        ("zero ^ -1", "no real value"),
        ("(0 - 1) ^ a", "no real value"),
        ("sqrt(-b)", "no real value"),
        ("log(zero)", "no real value"),
        ("exp(1000 * b)", "too large"),
        ("9 ^ 9 ^ 9 ^ 9", "too large"),
        ("1e308 * 10", "not finite"),
        ("1e308 * 10 - 1e308 * 10", "not finite"),
        ("floor(1e308 * 10)", "too large"),
    ],
)
def test_formulas_without_a_number_as_result_say_why(formula: str, reason: str) -> None:
    check(formula, SCORES)
    with pytest.raises(FormulaError, match=reason):
        compute(formula, SCORES)


@pytest.mark.parametrize(
    "formula",
    [
        "", " ", "a +", "a b", "c", "a.b", "a[0]", "a(1)", "min", "min()", "abs(a, b)", "sqrt()", "min(a, key=b)",
        "min(*a)", "__import__('os')", "a if b else a", "a and b", "not a", "a < b", "a = b", "a := b", "lambda: a",
        "[a]", "{a}", "'a'", "a ** b ~ 1", "a // b ! 1", "a % b", "a @ b", "a << 1", "True", "None", "1j", "(a, b)",
        "max(a, b).real", "a; b", "f(a)", "1e999", "9" * 400, "(" * 300 + "a" + ")" * 300, "-" * 300 + "a",
        "é", "\uff41", "+".join(["a"] * 2000), "a" * (MAX_CHARS + 1), "()", "...", "await a", "yield",
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(FormulaError):
        check(formula, SCORES)


def test_unknown_names_are_told_with_those_that_there_are() -> None:
    with pytest.raises(FormulaError, match="'c' is none of the graders a, b, zero"):
        check("a + c", SCORES)


def test_names_are_such_as_formulas_can_have() -> None:
    assert all(map(is_name, ["a", "A_1", "_x", "exact_match"]))
    assert not any(map(is_name, ["", "1a", "a-b", "a b", "min", "if", "None", "ä", "a\n"]))


def test_every_function_equals_pythons() -> None:
    for value in (0.1, 1.0, 2.5):
        for name in ("exp", "sqrt", "log", "floor", "ceil"):
            assert compute(f"{name}(x)", {"x": value}) == getattr(math, name)(value)
