"""Serving a model by vLLM with fewer visual tokens."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.app.command import (
    AsJson,
    Keep,
    MethodName,
    Setting,
    Usual,
    app,
    method_of,
    suited_to,
    told,
)
from secateur.app.progress import saying
from secateur.core.extras import extra


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder or name, as for `vllm serve`.")],
    method: MethodName = "divprune",
    keep: Keep = "64",
    setting: Setting = None,
    calibration: Usual = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model's repository.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a model by vLLM with the method in it; what else is given goes to `vllm serve`."""
    with told():
        chosen = method_of(method, keep, setting, calibration)
        program = shutil.which("vllm")
        if program is None and not dry_run:
            raise FileNotFoundError("serve needs vllm: pip install 'secateur[vllm]'")
        saying(f"reading the configuration of {model}")
        with extra("vllm", "serve"):
            from secateur.integrations.vllm import SUPPORTED, overrides
            from secateur.integrations.vllm.models import kind_of
        model_type, tower = _types(model, revision)
        kind = kind_of(model_type, tower) or model_type
        (chosen,) = suited_to(SUPPORTED.get(kind, ""), [chosen], setting)
        asked = overrides(chosen, kind)
        command = ["vllm", "serve", model, "--hf-overrides", json.dumps(asked)]
        if revision is not None:
            command += ["--revision", revision]
        command += context.args
        shown = {"command": command, "method": chosen.to_dict()}
        typer.echo(json.dumps(shown, indent=1) if as_json else shlex.join(command))
        if dry_run or program is None:
            return
        os.execv(program, command)


def _types(model: str, revision: str | None) -> tuple[str, str]:
    """What the model's configuration says it is, and what its vision tower is."""
    if Path(model, "config.json").is_file():
        stored: Any = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    else:
        with extra("transformers", "serve"):
            from transformers import PretrainedConfig
        stored, _ = PretrainedConfig.get_config_dict(model, revision=revision or "main")
    if not isinstance(stored, dict) or "model_type" not in stored:
        raise ValueError(f"{model}: its configuration has no model_type")
    vision = stored.get("vision_config") or {}
    return str(stored["model_type"]), str(vision.get("model_type", ""))
