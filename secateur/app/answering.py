"""Asking a model with fewer tokens, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import secateur as sc
from secateur.app.command import (
    AsJson,
    Keep,
    MethodName,
    Setting,
    Usual,
    app,
    method_of,
    printed,
    suited_to,
    told,
    writable,
)
from secateur.app.progress import saying
from secateur.core.extras import extra

TOY = (
    "the lab's small model answered, which knows drawn scenes only; "
    "--model asks one for photographs"
)


@app.command()
def prune(
    image: Annotated[
        Path, typer.Argument(help="A picture of any size; of a video a folder of its frames.")
    ],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    method: MethodName = "eadp",
    keep: Keep = "16",
    setting: Setting = None,
    calibration: Usual = None,
    compare: Annotated[
        str | None, typer.Option(help="Several methods, separated by commas, on one sheet.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder or name for from_pretrained; the lab's without.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="The CLIP or SigLIP checkpoint of the model's vision tower.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model goes: cpu, cuda, cuda:1; or auto.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")
    ] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model's repository.")
    ] = None,
    fps: Annotated[float, typer.Option(help="Of a video, how many frames a second.")] = 1.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path(
        "pruned.png"
    ),
    html: Annotated[
        Path | None, typer.Option(help="Write a page to explore methods and budgets, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question with all visual tokens and with those a method keeps, and draw them."""
    with told():
        names = compare.split(",") if compare else [method]
        chosen = [method_of(name.strip(), keep, setting, calibration) for name in names]
        _suited(chosen, model, calibration)
        if model is None and (text_encoder or revision):
            raise ValueError("--text-encoder and --revision go with --model, which was not given")
        with extra("cli,transformers", "prune"):
            from secateur.app.pictures import drawable, shown, watched

        drawable(output, "--output")
        writable(html, "--html")
        if fps <= 0:
            raise ValueError(f"--fps: expected a rate above 0, got {fps}")
        picture = watched(image)
        saying("starting PyTorch and transformers")
        with extra("cli,transformers", "prune"):
            from secateur.app.ask import ask, drawn, loaded, readable
        film, paired = isinstance(picture, list), text_encoder is not None
        readable(model, revision, video=film, methods=chosen, paired=paired)
        network = loaded(model, text_encoder, device=device, dtype=dtype, revision=revision)
        own = model is None
        if not own:
            chosen = suited_to(type(network[0]).__name__, chosen, setting)
        answers = ask(picture, question, chosen, network=network, own=own, fps=fps)
        drawn(shown(picture, network[1]), answers, question).save(output, optimize=True)
        if html is not None:
            from secateur.app.explore import explored

            page = explored(picture, question, chosen, network=network, own=own, fps=fps)
            html.write_text(page, "utf-8")
    _say(question, [answer.told() for answer in answers], output, html, as_json)
    if model is None:
        typer.echo(f"secateur: {TOY}", err=True)


def _suited(chosen: list[sc.Method], model: str | None, calibration: Path | None) -> None:
    """Refuse before a model is loaded what would be refused after."""
    takes = [each for each in chosen if hasattr(each, "mean_erank")]
    if calibration is not None and not takes:
        raise ValueError("--calibration: none of the methods asked for takes one")
    for each in takes:
        if model is not None and isinstance(each, sc.AgilePruner) and each.mean_erank is None:
            raise ValueError(
                "AgilePruner compares an image with others: write what they are like by "
                f"'secateur calibrate FOLDER --model {model} -o usual.json', and pass "
                "--calibration usual.json"
            )


def _say(
    question: str, rows: list[dict[str, Any]], output: Path, html: Path | None, as_json: bool
) -> None:
    if as_json:
        found = {"answers": rows, "picture": str(output), "page": html and str(html)}
        typer.echo(json.dumps(found, indent=1))
        return
    printed([{k: v for k, v in row.items() if k != "kept"} for row in rows], False, question)
    typer.echo(f"Wrote {output}." if html is None else f"Wrote {output} and {html}.")
