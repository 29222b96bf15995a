"""What there is: methods, models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secateur.app.command import AsJson, app, printed, told
from secateur.app.progress import saying
from secateur.core.extras import extra
from secateur.core.methods import table

SHORT = {
    "before the encoder": "pixels",
    "inside the encoder": "encoder",
    "before the language model": "before",
    "inside it": "inside",
    "while decoding": "decoding",
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
    wide = 16  # of those who act in three places it is one, and the line would be too long
    for row in rows:
        # By hand: a table of these would break words in a terminal of 80 columns.
        where = ", ".join(_places(row.acts))
        typer.echo(f"{row.name:15} {where:{wide}} {row.needs}")
    typer.echo(f"{len(rows)} methods: name, where it acts, what it needs; more by --json")


def _places(acts: str) -> list[str]:
    return [SHORT[each] for each in acts.split(" and ")]


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that a method can be attached to, and what goes with their checkpoints."""
    saying("asking transformers")
    with told():
        with extra("transformers", "models"):
            from secateur.integrations.families.checkpoints import CHECKPOINTS, Checkpoint
            from secateur.integrations.transformers.models import FAMILIES, adapter_of
            from secateur.integrations.vllm import SUPPORTED, architecture

        served = set(SUPPORTED.values())
        rows: list[dict[str, Any]] = []
        for name in FAMILIES:
            family = adapter_of(name).family
            known = CHECKPOINTS.get(name, Checkpoint(""))
            rows.append(
                {
                    "class": name,
                    "family": family.name,
                    "prunes": list(family.modalities),
                    "checkpoint": known.name or None,
                    "text_encoder": known.text_encoder,
                    "settings": known.settings,
                    "checked": "small models with random weights",
                    "vllm": architecture(name) if name in served else None,
                }
            )
    if as_json:
        printed(rows, True, "")
        return
    for row in rows:
        typer.echo(f"{row['family']}: {row['class']}")
        settings = [f"{name} {_pairs(given)}" for name, given in row["settings"].items()]
        for what, lines in (
            ("checkpoint", [row["checkpoint"]]),
            ("text encoder", [row["text_encoder"]]),
            ("settings", settings),
            ("on vLLM", [row["vllm"]]),
        ):
            for line in filter(None, lines):
                typer.echo(f"  {what:12}  {line}")
    typer.echo("Checked in small models with random weights; no checkpoint was run.")


def _pairs(given: Mapping[str, Any]) -> str:
    """Settings in a line; what would not fit is told by --json."""
    whole = " ".join(f"{key}={x}" for key, x in given.items())
    return whole if len(whole) <= 50 else ", ".join(given) + " as published"
