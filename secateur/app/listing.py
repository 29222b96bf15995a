"""What there is: methods, models."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.app.command import AsJson, app, printed, told
from secateur.core.extras import extra
from secateur.core.methods import table

SHORT = {
    "before the encoder": "pixels",
    "before the language model": "before",
    "inside it": "inside",
}
"""Where a method acts, in a word."""


@app.command()
def methods(
    needs: Annotated[
        str | None,
        typer.Option(
            help="Only methods that need no more than these inputs, such as features,text."
        ),
    ] = None,
    acts: Annotated[
        str | None, typer.Option(help=f"Only methods that act there: {', '.join(SHORT.values())}.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods by name: what they need, where they act, what they were checked against.

    With --json also paper, cost, guarantee and evidence, in full.
    """
    with told():
        if acts is not None and acts not in SHORT.values():
            raise ValueError(f"--acts: expected one of {', '.join(SHORT.values())}; got {acts!r}")
        allowed = None if needs is None else {name.strip() for name in needs.split(",")}
        known = {name for row in table() for name in row.needs.split(", ")}
        if allowed is not None and (unknown := sorted(allowed - known)):
            raise ValueError(
                f"--needs: expected inputs among {', '.join(sorted(known))}; got {unknown[0]!r}"
            )
        rows = [
            row
            for row in sorted(table(), key=lambda row: row.name)
            if (allowed is None or set(row.needs.split(", ")) <= allowed)
            and (acts is None or acts in _places(row.acts))
        ]
    if as_json:
        printed([row._asdict() for row in rows], True, "")
        return
    for row in rows:
        # By hand: a table of these would break words in a terminal of 80 columns.
        where = ", ".join(_places(row.acts))
        typer.echo(f"{row.name:15} {where:15} {row.needs}")
    typer.echo(f"{len(rows)} methods: name, where it acts, what it needs; more by --json")


def _places(acts: str) -> list[str]:
    return [SHORT[each] for each in acts.split(" and ")]


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models of transformers that a method can be attached to, and their names on vLLM."""
    with told():
        with extra("transformers", "models"):
            from secateur.integrations.transformers.models import FAMILIES
            from secateur.integrations.vllm import SUPPORTED, architecture

        served = set(SUPPORTED.values())
        rows = [
            {
                "class": name,
                "file": where.partition(":")[0].replace(".", "/") + ".py",
                "vllm": architecture(name) if name in served else None,
            }
            for name, where in FAMILIES.items()
        ]
    printed(rows, as_json, "Models")
