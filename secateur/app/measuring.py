"""Measuring methods on the lab's model, and images for methods that adapt to them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

import secateur as sc
from secateur.app.command import AsJson, app, printed, told, writable
from secateur.app.progress import progress, saying
from secateur.core.extras import extra
from secateur.core.methods.video import VideoMethod


@app.command()
def bench(
    folder: Annotated[
        Path, typer.Argument(help="Where cells and report go; a run goes on there.")
    ] = Path("build/bench"),
    only: Annotated[
        str | None, typer.Option("--methods", help="Names separated by commas; all without.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Tokens to keep, separated by commas; of each frame with --video.")
    ] = "64,36,16",
    count: Annotated[int, typer.Option("--scenes", min=2, help="Held-out scenes, or clips.")] = 100,
    video: Annotated[
        bool, typer.Option("--video", help="Clips instead of pictures; 9,4,2 tokens, 60 clips.")
    ] = False,
    claims: Annotated[bool, typer.Option(help="Check the claims of the papers as well.")] = True,
    on_ray: Annotated[bool, typer.Option("--ray", help="Spread the cells over Ray.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the report here instead of FOLDER/report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what methods cost the lab's model in answers, and write a report."""
    if video:
        if on_ray:
            raise typer.BadParameter("clips are asked in one process", param_hint="--ray")
        budgets = "9,4,2" if budgets == "64,36,16" else budgets
        count = 60 if count == 100 else count
        _bench_clips(folder, only, budgets, count, claims, report, as_json)
        return
    with told():
        names, keeps = _named(only), _budgets(budgets)
        saying("loading the lab's small model")
        with extra("cli,transformers", "bench"):
            from secateur.lab import HELD_OUT, findings, scenes
            from secateur.lab import bench as running
            from secateur.lab import claims as claiming

            lab = running.Lab.load()
        usually = running.usual(lab)
        planned = running.cells(names, keeps, usually)
        compared = keeps[-2:]
        claims = claims and only is None
        if claims:
            planned += claiming.variants(compared, usually)
        running.open_run(folder, count)
        todo = len(running.missing(folder, planned))
        with progress(todo, f"{todo} of {len(planned)} cells") as done:
            if on_ray:
                running.run_on_ray(folder, planned, count, done=lambda _: done())
            else:
                running.run(folder, planned, count, lab=lab, done=lambda _: done())
        found = {(each["label"], each["keep"]): each for each in running.results(folder, planned)}
        checked = []
        if claims:
            drawn = list(scenes(count, HELD_OUT))
            checked = [claiming.pointing(lab, drawn, usually), *claiming.check(found, compared)]
        made = f"{date.today().isoformat()}, {_machine()}."
        command = _repeated(folder, only, budgets, count, on_ray, report)
        report = report or folder / "report"
        rows = findings.write(report, found, checked, made, command)
    _told_of(rows, checked, count, as_json)
    if not as_json:
        typer.echo(f"Wrote {report / 'bench.md'}.")


def _bench_clips(
    folder: Path,
    only: str | None,
    budgets: str,
    count: int,
    claims: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """The same on clips, with the model that watches."""
    if folder == Path("build/bench"):
        folder = Path("build/bench-video")
    with told():
        keeps = _budgets(budgets, 36)
        with extra("cli,transformers", "bench"):
            from secateur.lab import bench as running
            from secateur.lab import bench_video as watching
            from secateur.lab import findings_video as findings

            eyes = watching.Eyes.load()
        usually = watching.usual_frames(eyes)
        names = watching.named(None if only is None else [x.strip() for x in only.split(",")])
        planned = watching.cells(names, keeps, usually)
        if claims:
            planned += watching.variants(keeps, usually)
        todo = len(running.missing(folder, planned))
        with progress(todo, f"{todo} of {len(planned)} cells") as done:
            watching.run(folder, planned, count, eyes=eyes, done=lambda _: done())
        found = {(each["label"], each["keep"]): each for each in running.results(folder, planned)}
        checked = findings.check(found, keeps) if claims else []
        made = f"{date.today().isoformat()}, {_machine()}."
        command = _repeated(folder, only, budgets, count, False, report, video=True)
        report = report or folder / "report"
        rows = findings.write(report, found, checked, made, command)
    _told_of(rows, checked, count, as_json, "clips")
    if not as_json:
        typer.echo(f"Wrote {report / 'video.md'}.")


def _told_of(
    rows: list[dict[str, Any]], checked: list[Any], count: int, as_json: bool, of: str = "scenes"
) -> None:
    """What was found, for people or for programs."""
    if as_json:
        claims = [{**vars(each), "verdict": each.verdict} for each in checked]
        typer.echo(json.dumps({"rows": rows, "claims": claims}, indent=1))
        return
    shown = [
        {
            "method": row["method"],
            "keep": row["keep"],
            "spent": _spent(row),
            "of_all_tokens": f"{100 * row['relative']:.0f} %",
            "95_%": f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
        }
        for row in rows
    ]
    printed(shown, False, f"Right answers on {count} {of}")
    if any(str(row["spent"]).endswith("*") for row in shown):
        typer.echo("* did not spend the budget: compare it with others at what it spent")
    for each in checked:
        typer.echo(f"{each.verdict:9} {each.claim} ({each.measured})")


def _spent(row: dict[str, Any]) -> str | None:
    """The tokens that were left on average, marked where they are not the budget."""
    spent = row["spent"]
    if spent is None or row["keep"] is None:
        return None
    return f"{spent:.0f}{'*' if row['frugal'] or row.get('lavish') else ''}"


def _named(only: str | None) -> list[str]:
    """The methods to measure, without those that cannot be attached to the lab's model."""
    unfit = {name for name, kind in sc.methods().items() if issubclass(kind, VideoMethod)}
    unfit |= {"idpruner", "visionselector"}
    if only is None:
        return sorted(set(sc.methods()) - unfit)
    names = [name.strip() for name in only.split(",")]
    if impossible := [name for name in names if name in unfit]:
        raise ValueError(
            f"--methods: {impossible[0]} cannot be measured on the lab's model, which has no "
            "weights for visionselector, no importance for idpruner, and no videos without --video"
        )
    return names


def _repeated(
    folder: Path,
    only: str | None,
    budgets: str,
    count: int,
    on_ray: bool,
    report: Path | None,
    *,
    video: bool = False,
) -> str:
    """The command that measures the same again."""
    usual = ("build/bench-video", "9,4,2", 60) if video else ("build/bench", "64,36,16", 100)
    shown = "" if folder == Path(usual[0]) else f" {folder}"
    return f"secateur bench{shown}" + "".join(
        f" {flag}"
        for flag, given in (
            ("--video", video),
            (f"--methods {only}", only is not None),
            (f"--budgets {budgets}", budgets != usual[1]),
            (f"--scenes {count}", count != usual[2]),
            ("--ray", on_ray),
            (f"--report {report}", report is not None),
        )
        if given
    )


def _budgets(text: str, most: int = 144) -> list[int]:
    try:
        keeps = sorted({int(part) for part in text.split(",")}, reverse=True)
    except ValueError:
        raise ValueError(f"--budgets: expected counts such as 64,36,16, got {text!r}") from None
    if not keeps or keeps[-1] < 1 or keeps[0] > most:
        raise ValueError(f"--budgets: the lab's model has {most} tokens, got {text!r}")
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
    with told():
        writable(output, "--output")
        saying("starting PyTorch and transformers")
        with extra("cli,transformers", "calibrate"):
            from secateur.app.ask import inputs_of, loaded, readable
            from secateur.calibration.folder import calibrate_on, pictures
        images = pictures(folder)
        readable(model)
        with progress(len(images), "images") as done:
            network, processor, _ = loaded(model, None)
            found = calibrate_on(
                images,
                network,
                processor,
                lambda picture: inputs_of(processor, picture, "describe.", own=model is None),
                done=done,
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
