"""A page for each method of the registry, made when the site is built; nothing lists them by hand.

A page says what a method is (its docstring), where it acts, what it works from and asks a model
for, where its authors' program differs, what it was compared with, and shows its code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from tables import ROOT, attached, described, markdown, program

import secateur as sc
from secateur.core.acts import Cuts
from secateur.core.inputs import INPUTS, REQUESTS, Request
from secateur.core.methods import Method, Row, own, table

DIFFERENCES = ROOT / "docs" / "methods" / "differences.md"
SETTINGS = ROOT / "docs" / "evidence" / "settings.md"

COUNTED = {
    "size": "from the size of the image: known before anything is encoded",
    "pixels": "from the pixels: known before anything is encoded",
    "features": "from the encoded image",
}
"""How `Method.counted_from` reads."""


def pages() -> dict[str, str]:
    """The pages by their address in the site, in the order of the table of methods."""
    return {
        f"methods/{row.name}.md": page(row, kind) for row, kind in zip(table(), own(), strict=True)
    }


def page(row: Row, kind: type[Method]) -> str:
    """One method's page."""
    first, *beside = (_described(name) for name in described(kind))
    source = "/".join(kind.__module__.split(".")) + ".py"
    calls = f'sc.method("{row.name}", keep=64)\nsc.published("{row.name}")'
    parts = [
        f"# {row.title}",
        f"{row.paper}.",
        f"```python\nimport secateur as sc\n\n{calls}\n```",
        markdown("in short | ", _facts(row, kind)),
        "## Definition",
        f"In `{source}`.",
        first,
        *_requests(kind),
        "## As published",
        _published(kind),
        "## Evidence",
        _evidence(row),
    ]
    if beside:
        parts += ["## What else the file offers", *beside]
    return "\n\n".join(parts)


def _described(name: str) -> str:
    return f"::: {name}\n    options:\n      show_source: true"


def _inputs(names: frozenset[str]) -> str:
    return "; ".join(f"`{name}`, {INPUTS[name].says}" for name in sorted(names)) or "nothing"


def _facts(row: Row, kind: type[Method]) -> Iterator[list[str]]:
    method = kind()
    inside = isinstance(method, Cuts)
    looks = ", ".join(f"`{look}`" for look in sorted(method.looks)) if inside else ""
    yield ["acts", row.acts]
    if method.needs or not inside:
        yield ["needs", _inputs(method.needs)]
    if method.optional:
        yield ["uses where given", _inputs(method.optional)]
    if looks:
        yield ["looks at, inside", looks]
    yield ["count", COUNTED[method.counted_from]]
    yield ["time", row.complexity]
    yield ["guarantee", row.guarantee]
    yield ["defaults", f"`{method!r}`"]


def _asked(request: Request) -> str:
    layer = request.layer
    if isinstance(layer, float):
        layer = f"{layer:.3g} of the depth"
    told = [f"layer: {layer}"]
    if request.what == "attention":
        told.append(f"paid by: {request.by}")
    if request.what in ("attention", "keys"):
        told.append(f"heads: {request.heads}")
    return f"{request.what}, {', '.join(told)}"


def _requests(kind: type[Method]) -> list[str]:
    """What an attachment observes for it, ours and theirs."""
    ours, theirs = kind(), sc.published(kind.name)
    rows = []
    for name in sorted((ours.needs | ours.optional | theirs.needs | theirs.optional) & {*REQUESTS}):
        asked = [
            _asked(each.requests.get(name, REQUESTS[name]))
            if name in each.needs | each.optional
            else "not asked for"
            for each in (ours, theirs)
        ]
        rows.append([f"`{name}`", *asked])
    if not rows:
        return []
    return [
        "## What it asks a model for",
        markdown("input | by default | as published", iter(rows)),
        "The words are those of [`Request`](../api/core.md#secateur.core.inputs.Request).",
    ]


def _published(kind: type[Method]) -> str:
    ours, theirs = kind(), sc.published(kind.name)
    told = ["There is no program of the authors to compare with."]
    if kind.program is not None:
        told = [f"The program: {program(kind)}."]
    if kind.program is not None and kind.program.notes:
        told.append(f"{kind.program.notes[0].upper()}{kind.program.notes[1:]}.")
    rows = [
        [f"`{name}`", f"`{getattr(ours, name)!r}`", f"`{x!r}`"]
        for name, x in kind.as_published.items()
    ]
    if ours.positions != theirs.positions:
        numbered = [f"`{x.positions!r}`" if x.positions else "the family's" for x in (ours, theirs)]
        rows.append(["positions of kept tokens", *numbered])
    parts = [" ".join(told)]
    if rows:
        parts.append(markdown("setting | by default | as published", iter(rows)))
    if found := differences().get(kind.__name__):
        parts.append(markdown("ours | theirs | why", iter(found)))
    return "\n\n".join(parts)


def differences() -> dict[str, list[list[str]]]:
    """The rows of the page of differences, by the title of their method."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in re.findall(r"^\| .* \|$", DIFFERENCES.read_text("utf-8"), re.M)[1:]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        title = name or title
        found.setdefault(title, []).append(cells)
    return found


def _evidence(row: Row) -> str:
    told = f"Checked against {row.parity}."
    if f"## {row.title}" in SETTINGS.read_text("utf-8").splitlines():
        page = f"../evidence/settings.md#{row.title.lower()}"
        told += f" [What its settings do]({page}) on features of models that others trained."

    def kind(run: tuple[str, ...]) -> tuple[str, ...]:
        """Model, what is compared, whether it is equal."""
        return (run[0], *run[2:])

    rows = []
    runs_of_it = sorted((run[1:] for run in attached() if run[0] == row.name), key=kind)
    for (model, what, equal), runs in groupby(runs_of_it, key=kind):
        rows.append([model, ", ".join(f"`{case}`" for _, case, *_ in runs), what, equal])
    if not rows:
        return told
    runs_told = markdown("model | recorded runs | compared | ours", iter(rows))
    return f"{told} The authors' program inside small models, beside ours:\n\n{runs_told}"
