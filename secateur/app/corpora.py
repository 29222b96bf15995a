"""Pruning whole corpora from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from secateur.app.command import AsJson, Keep, MethodName, Setting, Usual, app, method_of, told
from secateur.app.progress import progress, saying
from secateur.core.extras import extra


@app.command()
def corpus(
    source: Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(help="The folder for results.")],
    method: MethodName = "divprune",
    keep: Keep = "64",
    setting: Setting = None,
    calibration: Usual = None,
    features: Annotated[str, typer.Option(help="The column of visual features.")] = "features",
    keep_features: Annotated[bool, typer.Option(help="Write the kept features as well.")] = False,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Spread shards over a Ray cluster.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Actors, with --ray.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Prune every image of a corpus, shard by shard; started again, it goes on where it was."""
    with told():
        with extra("ray", "corpus"):
            from secateur.integrations.corpus import Pruner, open_corpus, prune_corpus
        chosen = method_of(method, keep, setting, calibration)
        pruner = Pruner(chosen, {"features": features}, keep_features)
        saying(f"looking through {source}")
        every, todo = open_corpus(source, target, pruner)
        run: Callable[..., Any] = prune_corpus
        more: dict[str, Any] = {"batch_size": batch_size}
        if on_ray:
            with extra("ray", "--ray"):
                from secateur.integrations.ray import prune_corpus as spread
            run, more = spread, {**more, "workers": workers}
        start = perf_counter()
        done = []
        with progress(len(todo), "shards") as step:
            for shard in run(source, target, pruner, **more):
                done.append(shard)
                step()
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
