"""The command `secateur`: what is there, what a method keeps, whole corpora, a server.

Answers go to standard output, for people or with ``--json`` for programs; errors are one line
on standard error that says what to do, with exit status 2.
"""

from __future__ import annotations

from typing import Annotated

import typer

import secateur as sc
from secateur.app import answering, corpora, diagnosis, listing, measuring, serving
from secateur.app.command import app

__all__ = ["answering", "app", "corpora", "diagnosis", "listing", "measuring", "serving"]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"secateur {sc.__version__}")
        raise typer.Exit


@app.callback()
def secateur(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Choose the visual tokens worth keeping."""


if __name__ == "__main__":
    app()
