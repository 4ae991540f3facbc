"""The requirements' acceptance tests, each under its id, and none left out."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

REQUIRED = {
    f"{section}.{letter}"
    for section, letters in {
        "1.1": "abcdef",
        "1.2": "cdef",
        "1.3": "abcdef",
        "2.1": "abcdefg",
        "2.2": "abcdef",
        "2.3": "abcdef",
        "2.4": "abcdef",
        "3.1": "abcdefg",
        "3.2": "abcdef",
        "3.3": "abcdef",
        "3.4": "abcdef",
    }.items()
    for letter in letters
}


def ids_of(source: str) -> list[str]:
    """The ids of every test function in `source` that carries `pytest.mark.prd("<id>")`."""
    return [
        ast.literal_eval(mark.args[0])
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_")
        for mark in function.decorator_list
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.prd"
    ]


def test_every_acceptance_test_of_phases_1_to_3_exists_under_its_id() -> None:
    found = Counter(
        prd_id for path in Path(__file__).parent.glob("test_*.py") for prd_id in ids_of(path.read_text())
    )
    assert not REQUIRED - found.keys(), "ids without a test"
    assert not {prd_id: times for prd_id, times in found.items() if times > 1}, "ids with several tests"
