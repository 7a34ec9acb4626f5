"""Nothing here reads a format that can hold code: no pickle, no code of a model's, no eval outside of the cage."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("services/**/*.py"), *ROOT.glob("shared/**/*.py")]
MODULES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "yaml"}
CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "dist.gather_object",
    "dist.all_gather_object",
}
"""yaml is imported by the writer of openapi.yaml alone, which reads none."""
WRITERS = {"services/api/openapi.py"}
CAGED = {"shared/grading/cage/inside.py": "exec"}
"""Where a program of a project is run: inside the cage that its module builds around itself first."""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _faults(source: ast.Module, path: str) -> Iterator[str]:
    for node in ast.walk(source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if path not in WRITERS:
                yield from (f"imports {name}" for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            if _name(node.func) in CALLS and CAGED.get(path) != _name(node.func):
                yield f"line {node.lineno} calls {_name(node.func)}"
            given = {word.arg: word.value for word in node.keywords}
            for word, right in (("trust_remote_code", False), ("weights_only", True), ("allow_pickle", False)):
                if word in given and getattr(given[word], "value", None) is not right:
                    yield f"line {node.lineno} passes {word}"
            if _name(node.func).endswith(".from_pretrained") and _may_run_code(given):
                yield f"line {node.lineno} leaves trust_remote_code open"


def _may_run_code(given: dict[str | None, ast.expr]) -> bool:
    return "trust_remote_code" not in given and None not in given  # **options: the embedded base's own file


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_reads_no_code_from_data(path: Path) -> None:
    assert list(_faults(ast.parse(path.read_text()), str(path.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("import pickle", "imports pickle"),
        ("x = torch.load('f')", "line 1 calls torch.load"),
        ("m = Auto.from_pretrained('b', trust_remote_code=True)", "line 1 passes trust_remote_code"),
        ("m = Auto.from_pretrained('b')", "line 1 leaves trust_remote_code open"),
        ("eval(text)", "line 1 calls eval"),
    ],
)
def test_planted_fault_is_found(line: str, fault: str) -> None:
    assert list(_faults(ast.parse(line), "planted.py")) == [fault]
