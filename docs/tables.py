"""The tables of the documents, from the registry, the rows of models and the recorded runs.

``make tables`` writes README's tables and the page of published programs; a test fails where they
are stale. The site takes the table of methods when it is built.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secateur.core.methods import Method, table
from secateur.core.methods import own as own_methods

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
METHODS = ROOT / "docs" / "methods" / "index.md"
PUBLISHED = ROOT / "docs" / "methods" / "published.md"
DRIVERS = ROOT / "docs" / "howto" / "new-backend.md"
ATTACHED = ROOT / "tests" / "parity" / "data" / "attached"


def markdown(head: str, rows: Iterator[list[str]]) -> str:
    """A table in Markdown; `head` names the columns, with bars between."""
    names = [name.strip() for name in head.split("|")]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def program(kind: type[Method]) -> str:
    """Where the authors' program is, and which commit was run."""
    if kind.program is None:
        return "none"
    repository, commit, _ = kind.program
    return f"[{repository}](https://github.com/{repository}/tree/{commit}) {commit[:7]}"


def readme_methods() -> str:
    """README's table of methods."""
    runs = {(name, model) for name, model, _, _, equal in attached() if equal == "equal"}
    models = list(dict.fromkeys(MODELS.values()))
    rows = (
        [
            f"`{row.name}`",
            row.paper,
            row.acts,
            row.parity,
            ", ".join(model for model in models if (row.name, model) in runs),
        ]
        for row in table()
    )
    return markdown("method | paper | acts | checked against | runs of it in", rows)


def readme_models() -> str:
    """README's table of models."""
    from secateur.integrations.transformers.models import FAMILIES, adapter_of
    from secateur.integrations.vllm.models import ROWS

    rows = []
    for name in FAMILIES:
        family = adapter_of(name).family
        prunes = " and ".join(f"{x}s" for x in family.modalities)
        served = [row for row in ROWS.values() if row.served == name]
        rows += [[family.name, f"`{name}`", prunes, "no"]] if not served else []
        for row in served:
            tower = f" with a tower of {row.towers[0].title()}" if row.model_type else ""
            rows.append([row.family.name, f"`{name}`{tower}", prunes, f"`{row.architecture}`"])
    return markdown("family | class of transformers | prunes | on vLLM", iter(rows))


def site_methods() -> str:
    """The site's table of methods; time, guarantee and program are on each method's page."""
    rows = (
        [f"[{row.title}]({row.name}.md)", row.paper, row.needs, row.acts, row.parity]
        for row in table()
    )
    return markdown("method | paper | needs | acts | checked against", rows)


def described(kind: type[Method]) -> list[str]:
    """A method, then whatever else that its file offers, in the order it is written in."""
    module = import_module(kind.__module__)
    beside = [
        x
        for name, x in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(x) or inspect.isclass(x))
        and x.__module__ == module.__name__
        and not (inspect.isclass(x) and issubclass(x, Method))
        and inspect.getdoc(x)
    ]
    return [f"{x.__module__}.{x.__qualname__}" for x in (kind, *beside)]


MODELS = {
    "llava15/": "LLaVA-1.5",
    "eadp_next": "LLaVA-NeXT",
    "eadp_video": "LLaVA-Video",
    "eadp_qwen25": "Qwen2.5-VL",
    "erase_qwen25": "Qwen2.5-VL",
    "erase_qwen3": "Qwen3-VL",
}
"""In which model a run was recorded, by how the name of its file begins."""

ANSWER = "cache lengths, eight tokens and their logits"
ALL = f"kept tokens and what is handed on, positions, {ANSWER}"
LEFT = f"tokens left after every cut, positions in every layer, {ANSWER}"
COMPARED = {
    "llava15/fastv_inplace": "cut and first logits: the program chooses anew at every token",
    "llava15/fastv": LEFT,
    "llava15/pyramiddrop": LEFT,
    "llava15/sparsevlm": LEFT,
    "llava15": ALL,
    "erase_qwen3_two_images": "kept tokens of stage 1: the program gives image 2 planes of image 1",
    "erase": f"kept tokens of both stages, positions, {ANSWER}",
    "eadp_qwen25": f"maps, kept tokens, positions, {ANSWER}",
    "eadp_next": "maps, crops, kept tokens: transformers adds newlines, so logits differ",
    "eadp_video": "maps and kept tokens: transformers adds a newline, so logits differ",
}
"""What is compared of a run, by how the name of its file begins; the first that fits."""


def _begins(stem: str, told: dict[str, str]) -> str:
    return next((said for begin, said in told.items() if stem.startswith(begin)), "")


def attached() -> list[tuple[str, str, str, str, str]]:
    """Every recorded run of a program in a model: method, model, case, what is compared, equal."""
    calls = _module(ATTACHED / "calls.py")
    missing = _not_yet()
    found = []
    for file in sorted(ATTACHED.glob("**/*.npz")):
        stem = file.relative_to(ATTACHED).with_suffix("").as_posix()
        if file.parent.name == "models" or "unpruned" in stem:
            continue
        with np.load(file) as case:
            name, _ = calls.call(case, file.stem)
        why = _begins(stem, missing)
        equal = f"not yet: {why}" if why else "equal"
        found.append((name, _begins(stem, MODELS), file.stem, _begins(stem, COMPARED), equal))
    order = [kind.name for kind in own_methods()]
    return sorted(found, key=lambda run: order.index(run[0]))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _not_yet() -> dict[str, str]:
    """What `tests/parity/test_attached.py` expects to fail."""
    tree = ast.parse((ROOT / "tests" / "parity" / "test_attached.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_YET":
            told: dict[str, str] = ast.literal_eval(node.value)
            return told
    return {}


def in_models() -> str:
    """The table of runs in models: method, program, model, cases."""
    kinds = {kind.name: kind for kind in own_methods()}
    rows = []
    for (name, model, compared, equal), runs in groupby(
        sorted(attached(), key=lambda run: (list(kinds).index(run[0]), run[1], run[3], run[4])),
        key=lambda run: (run[0], run[1], run[3], run[4]),
    ):
        cases = ", ".join(f"`{case}`" for _, _, case, _, _ in runs)
        rows.append([f"`{name}`", program(kinds[name]), model, cases, compared, equal])
    return markdown("method | program | model | cases | compared | ours", iter(rows))


def programs() -> str:
    """The table of programs: what is compared on arrays, what publishing changes."""
    rows = []
    for row, kind in zip(table(), own_methods(), strict=True):
        if kind.program is not None:
            sets = ", ".join(f"`{name}={x!r}`" for name, x in kind.as_published.items())
            rows.append([f"`{row.name}`", program(kind), row.parity, sets, kind.program.notes])
    return markdown("method | program | compared | published sets | of the program", iter(rows))


def on_vllm() -> str:
    """The table of what the plug-in for vLLM serves of published forms, and why not the rest."""
    from secateur.integrations.vllm import method_of
    from secateur.integrations.vllm.models import ROWS

    found: dict[tuple[str, str], list[str]] = {}
    for kind in own_methods():
        if kind.program is None:
            continue
        served, reasons = [], []
        for model_type, row in ROWS.items():
            try:
                method_of({**kind.as_published, "method": kind.name, "published": True}, model_type)
            except ValueError as error:
                why = str(error).removeprefix("secateur: ").removeprefix(f"{kind.name} ")
                reasons.append(why.split("; ")[0].replace(f"vLLM's {model_type}", "the model"))
            else:
                served.append(row.family.name)
        key = (", ".join(dict.fromkeys(served)) or "none", "; ".join(dict.fromkeys(reasons)))
        found.setdefault(key, []).append(f"`{kind.name}`")
    rows = ([", ".join(names), *key] for key, names in found.items())
    return markdown("published forms of | served in | refused elsewhere, because", rows)


SET = {"pixelprune": {"before": "encoder"}, "mustdrop": {"window": 3}}
"""Settings under which a method acts where it does not by itself, with a row of their own."""


def in_families() -> str:
    """The table of which families take which methods, attached, and why the others do not."""
    from secateur.integrations.choosing import wanted
    from secateur.integrations.transformers.models import FAMILIES, adapter_of

    families = {adapter_of(name).family for name in FAMILIES}
    found: dict[tuple[str, str], list[str]] = {}
    for kind in own_methods():
        for given in ({}, SET[kind.name]) if kind.name in SET else ({},):
            taken, refused = [], {}
            for family in sorted(families, key=lambda each: each.name):
                try:
                    wanted(kind(**given), family, None)
                except ValueError as error:
                    why = str(error).removeprefix(f"{kind.__name__} ").split(" (")[0]
                    why = why.replace(family.name, "the model")
                    why = why.removeprefix("folds tokens inside the encoder; ")
                    why = why.replace("behind that of the model", "behind the encoder")
                    refused.setdefault(why, []).append(family.name)
                else:
                    taken.append(family.name)
            reasons = (f"{', '.join(names)}: {why}" for why, names in refused.items())
            others = [name for names in refused.values() for name in names]
            every = ", ".join(taken) or "none"
            if len(others) < len(taken):
                every = f"all but {', '.join(others)}" if others else "all"
            set_to = ", ".join(f"`{name}={x!r}`" for name, x in given.items())
            name = f"`{kind.name}` with {set_to}" if given else f"`{kind.name}`"
            found.setdefault((every, "; ".join(reasons)), []).append(name)
    rows = ([", ".join(names), *key] for key, names in found.items())
    return markdown("method | taken by | refused by, because", rows)


def operations() -> str:
    """The table of operations: what a driver may offer, and where the reference is."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "secateur" / "core").rglob("*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(each).split("(")[0] == "operation" for each in node.decorator_list
            ):
                module = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
                found.setdefault(module, []).append(f"`{node.name}`")
    rows = ([", ".join(names), f"`{module}`"] for module, names in found.items())
    return markdown("operation | where", rows)


def parts() -> list[tuple[Path, str, str]]:
    """Every written table: the file, the name between whose marks it stands, its text."""
    return [
        (README, "methods", readme_methods()),
        (README, "models", readme_models()),
        (METHODS, "in families", in_families()),
        (PUBLISHED, "in models", in_models()),
        (PUBLISHED, "programs", programs()),
        (PUBLISHED, "on vllm", on_vllm()),
        (DRIVERS, "operations", operations()),
    ]


def placed(text: str, name: str, written: str) -> str:
    """A text with a table between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin} and one {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{written}\n{end}{rest.split(end)[1]}"


def stale() -> dict[Path, str]:
    """What the files should be that are not what they should."""
    found: dict[Path, Any] = {}
    for path, name, written in parts():
        found[path] = placed(found.get(path, path.read_text("utf-8")), name, written)
    return {path: text for path, text in found.items() if text != path.read_text("utf-8")}


if __name__ == "__main__":
    for path, text in stale().items():
        path.write_text(text, "utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
