"""The formula of a multi grader: arithmetic over the scores of its parts.

Written as Python's, with `^` for powers: `+ - * / ^`, brackets, numbers, the parts' names, and min, max, abs, floor,
ceil, exp, sqrt, log. Python's parser reads it, and only the nodes below are ever looked at: nothing is executed.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

MAX_CHARS = 4096
_MAX_DEPTH = 100

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ALLOWED = re.compile(r"[A-Za-z0-9_.,()+\-*/^\s]*")
"""No quotes, brackets of other kinds, backslashes or `**` by another name."""
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip
_UNARY: Mapping[type[ast.unaryop], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt, "log": math.log,
}  # fmt: skip
_SEVERAL: Mapping[str, Callable[..., float]] = {"min": min, "max": max}
FUNCTIONS = frozenset({*_ONE, *_SEVERAL})


class FormulaError(Exception):
    """A text that is no formula, or one that has no number as its result; the message says which."""


def is_name(text: str) -> bool:
    """Tell whether a formula can speak of a part by this name."""
    return bool(_NAME.fullmatch(text)) and not keyword.iskeyword(text) and text not in FUNCTIONS


def check(formula: str, names: Collection[str]) -> None:
    """Raise FormulaError unless the formula can be computed from these names."""
    unknown = sorted({node.id for node in ast.walk(_parsed(formula)) if isinstance(node, ast.Name)} - {*names})
    unknown = [name for name in unknown if name not in FUNCTIONS]
    if unknown:
        raise FormulaError(f"'{unknown[0]}' is none of the graders {', '.join(sorted(names))}")


def compute(formula: str, scores: Mapping[str, float]) -> float:
    """Return the result, which is finite. Raises FormulaError: a division by zero, a root of -1, an overflow, …."""
    try:
        result = float(_value(_parsed(formula), scores))
    except ZeroDivisionError as error:
        raise FormulaError("it divides by zero") from error
    except OverflowError as error:
        raise FormulaError("a number in it is too large") from error
    except ValueError as error:
        raise FormulaError("a root, logarithm or power in it has no real value") from error
    if not math.isfinite(result):
        raise FormulaError("its result is not finite")
    return result


@lru_cache(maxsize=256)
def _parsed(formula: str) -> ast.expr:
    if len(formula) > MAX_CHARS:
        raise FormulaError(f"it is longer than {MAX_CHARS:,} characters")
    if not _ALLOWED.fullmatch(formula):
        found = next(character for character in formula if not _ALLOWED.fullmatch(character))
        raise FormulaError(f"{found!r} does not occur in formulas")
    try:
        # One line, so that Python's rules about indentation do not matter.
        tree = ast.parse(" ".join(formula.replace("^", "**").split()), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise FormulaError("it is not arithmetic; see the manual for what formulas may have") from error
    _check(tree.body, _MAX_DEPTH)
    return tree.body


def _check(node: ast.expr, depth: int) -> None:
    """Raise FormulaError for everything that is not on the list."""
    if depth == 0:
        raise FormulaError(f"it is nested more than {_MAX_DEPTH} levels deep")
    match node:
        case ast.Constant(value=float() | int() as number) if not isinstance(number, bool):
            _number(number)
        case ast.Name():
            if node.id in FUNCTIONS:
                raise FormulaError(f"'{node.id}' is a function; write {node.id}(…)")
        case ast.UnaryOp() if type(node.op) in _UNARY:
            _check(node.operand, depth - 1)
        case ast.BinOp() if type(node.op) in _BINARY:
            _check(node.left, depth - 1)
            _check(node.right, depth - 1)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            if not node.args or (name in _ONE and len(node.args) != 1):
                raise FormulaError(f"{name}() takes {'one number' if name in _ONE else 'one number or more'}")
            for argument in node.args:
                _check(argument, depth - 1)
        case _:
            raise FormulaError(
                "it may have numbers, the graders' names, + - * / ^, brackets, "
                f"and the functions {', '.join(sorted(FUNCTIONS))} alone"
            )


def _value(node: ast.expr, scores: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=float() | int() as number):
            return _number(number)
        case ast.Name(id=name):
            return scores[name]
        case ast.UnaryOp():
            return _UNARY[type(node.op)](_value(node.operand, scores))
        case ast.BinOp():
            return float(_BINARY[type(node.op)](_value(node.left, scores), _value(node.right, scores)))
        case ast.Call(func=ast.Name(id=name)):
            values = [_value(argument, scores) for argument in node.args]
            return float(_ONE[name](values[0]) if name in _ONE else _SEVERAL[name](values))
    raise AssertionError(f"{type(node).__name__} has not been checked")


def _number(number: float) -> float:
    try:
        value = float(number)
    except OverflowError as error:
        raise FormulaError("a number in it is too large") from error
    if not math.isfinite(value):
        raise FormulaError("a number in it is too large")
    return value
