"""The command `secateur`: what is there, what a method keeps, whole corpora.

Answers go to standard output, for people or with ``--json`` for programs; errors are one line
on standard error that says what to do, with exit status 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import secateur as sc
from secateur.core.dispatch import drivers
from secateur.core.methods import table

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


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a user can mend into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        # transformers writes paragraphs about a checkpoint it cannot find.
        typer.echo(f"secateur: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


def _print(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    shown = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in rows[0]:
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


def _method(name: str, keep: str, settings: list[str] | None) -> sc.Method:
    given: dict[str, Any] = {"method": name, "keep": _number(keep)}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set: expected name=value, got {setting!r}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    return sc.Method.from_dict(given)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: paper, inputs, cost, guarantee, what each was checked against."""
    _print([row._asdict() for row in table()], as_json, "Methods")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models of transformers that a method can be attached to, and their names on vLLM."""
    from secateur.integrations.transformers.models import FAMILIES
    from secateur.integrations.vllm import SUPPORTED, architecture

    with _told():
        served = set(SUPPORTED.values())
        rows = [
            {
                "class": name,
                "file": where.partition(":")[0].replace(".", "/") + ".py",
                "vllm": architecture(name) if name in served else None,
            }
            for name, where in FAMILIES.items()
        ]
    _print(rows, as_json, "Models")


OPTIONAL = ("numba", "torch", "cupy", "jax", "transformers", "triton", "optuna", "ray", "vllm")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which drivers are active, and which GPU is there."""
    from secateur.core.dispatch import candidates

    installed: dict[str, str | None] = {}
    for name in ("numpy", "scipy", "array-api-compat", *OPTIONAL):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = _cupy() if name == "cupy" else None
    import numpy as np

    active = {"numpy": [module.__name__ for module in candidates(np.zeros(1))]}
    gpu = None
    if installed["torch"]:
        import torch

        active["torch"] = [module.__name__ for module in candidates(torch.zeros(1))]
        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_name()
    report = {
        "secateur": sc.__version__,
        "python": sys.version.split()[0],
        "installed": installed,
        "registered": {library: list(names) for library, names in drivers().items()},
        "active": active,
        "gpu": gpu,
    }
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    console = Console(highlight=False)
    console.print(f"secateur {report['secateur']}, Python {report['python']}")
    for name, found in installed.items():
        console.print(f"  {name:18} {found or 'not installed'}")
    for library, modules in active.items():
        names = ", ".join(module.rpartition(".")[2] for module in modules) or "the reference only"
        console.print(f"arrays of {library}: {names}")
    console.print(f"GPU: {gpu or 'none that torch sees'}")


def _cupy() -> str | None:
    for name in ("cupy-cuda13x", "cupy-cuda12x"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@app.command()
def prune(
    image: Annotated[Path, typer.Argument(help="A picture of any size.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    method: MethodName = "eadp",
    keep: Keep = "16",
    setting: Setting = None,
    compare: Annotated[
        str | None, typer.Option(help="Several methods, separated by commas, on one sheet.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder or name for from_pretrained; the lab's without.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="The CLIP checkpoint of the model's vision tower.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path(
        "pruned.png"
    ),
    html: Annotated[
        Path | None, typer.Option(help="Write a page to explore methods and budgets, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question with all visual tokens and with those a method keeps, and draw them."""
    with _told():
        try:
            from secateur.app.ask import ask, drawn
        except ImportError as error:
            raise ImportError(
                f"prune needs {error.name}: pip install 'secateur[cli,transformers]'"
            ) from None
        names = compare.split(",") if compare else [method]
        chosen = [_method(name.strip(), keep, setting) for name in names]
        answers = ask(image, question, chosen, model=model, text_encoder=text_encoder)
        drawn(image, answers).save(output, optimize=True)
        if html is not None:
            from secateur.app.explore import explored

            page = explored(image, question, chosen, model=model, text_encoder=text_encoder)
            html.write_text(page, "utf-8")
    rows = [answer.told() for answer in answers]
    if as_json:
        told = {"answers": rows, "picture": str(output), "page": html and str(html)}
        typer.echo(json.dumps(told, indent=1))
        return
    _print([{k: v for k, v in row.items() if k != "kept"} for row in rows], False, question)
    typer.echo(f"Wrote {output}." if html is None else f"Wrote {output} and {html}.")


@app.command()
def bench(
    folder: Annotated[
        Path, typer.Argument(help="Where cells and report go; a run goes on there.")
    ] = Path("build/bench"),
    only: Annotated[
        str | None, typer.Option("--methods", help="Names separated by commas; all without.")
    ] = None,
    budgets: Annotated[str, typer.Option(help="Tokens to keep, separated by commas.")] = "64,36,16",
    count: Annotated[int, typer.Option("--scenes", min=2, help="Held-out scenes.")] = 100,
    claims: Annotated[bool, typer.Option(help="Check the claims of the papers as well.")] = True,
    on_ray: Annotated[bool, typer.Option("--ray", help="Spread the cells over Ray.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the report here instead of FOLDER/report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what methods cost the lab's model in answers, and write a report."""
    with _told():
        try:
            from secateur.lab import HELD_OUT, findings, scenes
            from secateur.lab import bench as running
            from secateur.lab import claims as claiming

            lab = running.Lab.load()
        except ImportError as error:
            raise ImportError(
                f"bench needs {error.name}: pip install 'secateur[cli,transformers]'"
            ) from None
        names = sorted(sc.methods()) if only is None else [n.strip() for n in only.split(",")]
        keeps = _budgets(budgets)
        usually = running.usual(lab)
        planned = running.cells(names, keeps, usually)
        compared = keeps[-2:]
        claims = claims and only is None
        if claims:
            planned += claiming.variants(compared, usually)
        running.open_run(folder, count)
        todo = len(running.missing(folder, planned))
        with typer.progressbar(
            length=todo,
            label=f"{todo} of {len(planned)} cells",
            file=sys.stderr,
            hidden=as_json or not sys.stderr.isatty(),
        ) as bar:
            if on_ray:
                running.run_on_ray(folder, planned, count, done=lambda _: bar.update(1))
            else:
                running.run(folder, planned, count, lab=lab, done=lambda _: bar.update(1))
        found = {(each["label"], each["keep"]): each for each in running.results(folder, planned)}
        checked = []
        if claims:
            drawn = list(scenes(count, HELD_OUT))
            checked = [claiming.pointing(lab, drawn, usually), *claiming.check(found, compared)]
        made = f"{date.today().isoformat()}, {_machine()}."
        shown = "" if folder == Path("build/bench") else f" {folder}"
        command = f"secateur bench{shown}" + "".join(
            f" {flag}"
            for flag, given in (
                (f"--methods {only}", only is not None),
                (f"--budgets {budgets}", budgets != "64,36,16"),
                (f"--scenes {count}", count != running.SCENES),
                ("--ray", on_ray),
                (f"--report {report}", report is not None),
            )
            if given
        )
        report = report or folder / "report"
        rows = findings.write(report, found, checked, made, command)
    if as_json:
        told = [{**vars(each), "verdict": each.verdict} for each in checked]
        typer.echo(json.dumps({"rows": rows, "claims": told}, indent=1))
        return
    told = [
        {
            "method": row["method"],
            "keep": row["keep"],
            "of_all_tokens": f"{100 * row['relative']:.0f} %",
            "95_%": f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
        }
        for row in rows
    ]
    _print(told, False, f"Right answers on {count} scenes")
    for each in checked:
        typer.echo(f"{each.verdict:9} {each.claim} ({each.measured})")
    typer.echo(f"Wrote {report / 'bench.md'}.")


def _budgets(text: str) -> list[int]:
    try:
        keeps = sorted({int(part) for part in text.split(",")}, reverse=True)
    except ValueError:
        raise ValueError(f"--budgets: expected counts such as 64,36,16, got {text!r}") from None
    if not keeps or keeps[-1] < 1 or keeps[0] > 144:
        raise ValueError(f"--budgets: the lab's model has 144 tokens, got {text!r}")
    return keeps


def _machine() -> str:
    import os
    import platform

    return f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}"


@app.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(help="A folder of images as the model will see.")],
    model: Annotated[
        str | None, typer.Option(help="A folder or name for from_pretrained; the lab's without.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the calibration to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what adaptive methods compare an image with: mean complexity and thresholds."""
    with _told():
        try:
            from secateur.app.ask import inputs_of, loaded
            from secateur.calibration.folder import calibrate_on, pictures
        except ImportError as error:
            raise ImportError(
                f"calibrate needs {error.name}: pip install 'secateur[cli,transformers]'"
            ) from None
        images = pictures(folder)
        with typer.progressbar(
            length=len(images),
            label="images",
            file=sys.stderr,
            hidden=as_json or not sys.stderr.isatty(),
        ) as bar:
            network, processor, _ = loaded(model, None)
            found = calibrate_on(
                images,
                network,
                processor,
                lambda picture: inputs_of(processor, picture, "describe.", own=model is None),
                done=lambda: bar.update(1),
            )
        if output is not None:
            found.calibration.save(output)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    typer.echo(
        f"mean effective rank of {found.calibration.images} images: {found.calibration.erank:.4g}"
    )
    if found.calibration.entropy is not None:
        typer.echo(f"mean attention entropy: {found.calibration.entropy:.4g} nats")
    typer.echo(f"thresholds of ERASE: {', '.join(f'{x:.4g}' for x in found.thresholds)}")
    typer.echo(f"use {found.erase!r}")
    if output is not None:
        typer.echo(f"Wrote {output}: secateur.Calibration.load reads it.")


@app.command()
def corpus(
    source: Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(help="The folder for results.")],
    method: MethodName = "divprune",
    keep: Keep = "64",
    setting: Setting = None,
    features: Annotated[str, typer.Option(help="The column of visual features.")] = "features",
    keep_features: Annotated[bool, typer.Option(help="Write the kept features as well.")] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Spread shards over a Ray cluster.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Actors, with --ray.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Prune every image of a corpus, shard by shard; started again, it goes on where it was."""
    with _told():
        try:
            from secateur.integrations.corpus import Pruner, open_corpus, prune_corpus
        except ImportError:
            raise ImportError("corpus needs pyarrow: pip install 'secateur[ray]'") from None
        pruner = Pruner(_method(method, keep, setting), {"features": features}, keep_features)
        every, todo = open_corpus(source, target, pruner)
        run: Callable[..., Any] = prune_corpus
        more: dict[str, Any] = {"batch_size": batch_size}
        if on_ray:
            try:
                from secateur.integrations.ray import prune_corpus as spread
            except ImportError:
                raise ImportError("--ray needs Ray: pip install 'secateur[ray]'") from None
            run, more = spread, {**more, "workers": workers}
        start = perf_counter()
        done = []
        with typer.progressbar(
            length=len(todo),
            label="shards",
            file=sys.stderr,
            hidden=as_json or not sys.stderr.isatty(),
        ) as bar:
            for shard in run(source, target, pruner, **more):
                done.append(shard)
                bar.update(1)
    report = {
        "shards": len(every),
        "done_before": len(every) - len(todo),
        "images": sum(shard.images for shard in done),
        "bad": sum(shard.bad for shard in done),
        "seconds": round(perf_counter() - start, 3),
        "target": str(target),
    }
    if as_json:
        typer.echo(json.dumps({**report, "done": [asdict(shard) for shard in done]}, indent=1))
        return
    typer.echo(
        f"{report['images']} images pruned in {report['seconds']} s, {report['bad']} bad; "
        f"{report['done_before']} of {report['shards']} shards were done before"
    )
    if report["bad"]:
        typer.echo(f"bad rows and their reasons: {target / '_bad'}")


if __name__ == "__main__":
    app()
