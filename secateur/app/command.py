"""What the commands share: options, answers for people or programs, errors of one line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import secateur as sc

app = typer.Typer(
    help="Choose the visual tokens worth keeping.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Keep = Annotated[
    str, typer.Option(help="How many tokens to keep: a count, or a share such as 0.25.")
]
MethodName = Annotated[str, typer.Option("--method", help="One of `secateur methods`.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="A parameter of the method, name=value; may be repeated."),
]
Usual = Annotated[
    Path | None,
    typer.Option("--calibration", help="What `secateur calibrate` wrote, for adaptive methods."),
]


@contextmanager
def told() -> Iterator[None]:
    """Turn what a user can mend into one line and exit status 2, and warnings into one line."""
    with warnings.catch_warnings():
        warnings.showwarning = _in_a_line(warnings.showwarning)
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            # transformers writes paragraphs about a checkpoint it cannot find.
            typer.echo(f"secateur: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None


def _in_a_line(show: Callable[..., None]) -> Callable[..., None]:
    """Show what is told to users without the place in the source that tells it."""

    def shown(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category is UserWarning:
            typer.echo(f"secateur: {message}", err=True)
        else:
            show(message, category, *rest, **more)

    return shown


def printed(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Print rows as a table as wide as the terminal, or as JSON."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    shown = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in rows[0] if rows else ():
        shown.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _number(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ValueError(
            f"--keep: expected a count or a share such as 0.25, got {text!r}"
        ) from None


def method_of(
    name: str, keep: str, settings: list[str] | None, calibration: Path | None = None
) -> sc.Method:
    """The method that options describe; a calibration goes to those that take one."""
    given: dict[str, Any] = {"method": name, "keep": _number(keep)}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: expected name=value, got {setting!r}")
        if key in given:
            twice = f"here and by --{key}" if key in ("keep", "method") else "by --set alone"
            raise ValueError(f"--set: {key} is said twice, {twice}")
        try:
            given[key] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            given[key] = value
        if key == "mean_erank" and isinstance(given[key], str):
            raise ValueError(f"--set: mean_erank is a number; --calibration {value} reads a file")
    found = sc.methods().get(name)
    if calibration is not None and found and "mean_erank" in {x.name for x in fields(found)}:
        given["mean_erank"] = sc.Calibration.load(calibration)
    return sc.Method.from_dict(given)


def suited_to(
    kind: str, chosen: Sequence[sc.Method], settings: list[str] | None
) -> list[sc.Method]:
    """Methods with their authors' settings for a class of models, where no ``--set`` says more."""
    from secateur.integrations.families.checkpoints import suited

    said = {setting.partition("=")[0] for setting in settings or []}
    found = [suited(method, kind, said) for method in chosen]
    for before, after in zip(chosen, found, strict=True):
        if before != after:
            typer.echo(f"secateur: for {kind}, as its authors: {after!r}", err=True)
    return found


def writable(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written when the work is done."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{option}: expected a file, {path} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {path.parent}")
    try:
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise OSError(f"{option}: {path} cannot be written: {error.strerror}") from None
