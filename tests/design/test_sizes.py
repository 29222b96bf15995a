"""What keeps the house readable: short functions, short files, layers, no circles, no guessing.

What is not met yet stands in `OPEN`, which may only shrink: an entry that is met makes its test
fail until it is struck out.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTION, FILE = 80, 500

KERNELS = {
    "secateur/backends/cupy/kernels.py",
    "secateur/backends/host/kernels.py",
    "secateur/backends/torch/kernels.py",
}

OPEN = {
    "function": set(),
    "file": set(),
    "circle": set(),
    "guess": set(),
}


@cache
def sources() -> dict[str, ast.Module]:
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8"))
        for file in sorted((ROOT / "secateur").rglob("*.py"))
    }


def test_no_function_is_longer_than_eighty_lines():
    """Its docstring not counted."""
    found = set()
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and path not in KERNELS:
                said = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1
                lines -= said.count("\n") + 1 if said else 0
                if lines > FUNCTION:
                    found.add(f"{path}:{node.name}")
    assert found == OPEN["function"]


def test_no_file_is_longer_than_five_hundred_lines():
    lengths = {path: (ROOT / path).read_text("utf-8").count("\n") for path in sources()}
    found = {path for path, lines in lengths.items() if lines > FILE}
    assert found - KERNELS == OPEN["file"]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(path: str, tree: ast.Module) -> set[str]:
    """The files of ours that a file imports when it is loaded, not those within functions."""
    known, found = {module_of(each) for each in sources()}, set()
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            files = {f"{node.module}.{each.name}" for each in node.names}
            # A package that is only walked through on the way to its files is not needed itself.
            found |= files if files <= known else files | {node.module}
        todo.extend(ast.iter_child_nodes(node))
    return (found & known) - {module_of(path)}


def test_no_circle_of_files():
    graph = {module_of(path): imported(path, tree) for path, tree in sources().items()}
    left = dict(graph)
    while ends := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ends:
            del left[name]
    # What remains is in a circle or leads to one; of those, what nothing else remaining needs
    # only leads there.
    while begins := [name for name in left if not any(name in graph[other] for other in left)]:
        for name in begins:
            del left[name]
    assert set(left) == OPEN["circle"]


def test_every_module_is_in_a_contract_of_layers():
    """Every room is named, and every file of the rooms that have layers of their own."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layered = {}
    for contract in told["contracts"]:
        if contract["type"] == "layers":
            assert contract["exhaustive"], contract["name"]
            listed = [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]
            names = {name for layer in listed for name in layer}
            layered |= dict.fromkeys(contract["containers"], names)
    rooms = ("secateur", *(f"secateur.{x}" for x in ("backends", "core", "integrations", "lab")))
    assert set(rooms) <= layered.keys()
    places = [module_of(path).rpartition(".") for path in sources()]
    missing = [
        f"{room}.{name}" for room, _, name in places if name not in layered.get(room, {name})
    ]
    assert missing == []


def test_hosts_ask_what_a_method_does_not_what_its_fields_are_called():
    guess = re.compile(r"getattr\((?:self\.)?method,\s*[\"'](\w+)[\"']")
    found = {
        f"{path}:{name}"
        for path in sources()
        if path.startswith("secateur/integrations/")
        for name in guess.findall((ROOT / path).read_text("utf-8"))
    }
    assert found == OPEN["guess"]
