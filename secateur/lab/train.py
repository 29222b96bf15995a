"""Train the lab's model: ``python -m secateur.lab.train --out build/lab``.

First the vision tower learns to name what every patch shows, then the whole model learns to answer.
A run that was stopped goes on with ``--resume``: model, optimiser and place in the stream of scenes
are in ``checkpoint.pt``. The same arguments draw the same scenes in the same order.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from secateur.lab.batches import (
    NOT_ASKED,
    PATCHES,
    PRESENT,
    PROBES,
    Batch,
    batch,
    pixels,
    prompt_start,
)
from secateur.lab.model import WIDTH, build_model
from secateur.lab.scene import KINDS


@dataclass(frozen=True)
class Settings:
    """What a run is made of; saved with it.

    Attributes
    ----------
    steps, tower_steps
        How many in all, and how many of them train the tower alone.
    size, room
        Scenes a batch, and tokens of questions and answers on each at most.
    rate, decay, warmup
        Peak learning rate, which a cosine takes to a hundredth; weight decay; steps of warm-up.
    patch_weight, present_weight
        How much the patch probes and the class token's probe count beside the answers.
    seed
        Of the weights and of the scenes.
    """

    steps: int = 8000
    tower_steps: int = 800
    size: int = 32
    room: int = 112
    rate: float = 1.5e-3
    decay: float = 0.02
    warmup: int = 150
    patch_weight: float = 0.5
    present_weight: float = 0.5
    seed: int = 0


class Probes(nn.Module):  # type: ignore[misc]
    """Linear readings of the tower that teach it and are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in PROBES.items()})
        self.present = nn.Linear(WIDTH, PRESENT)

    def forward(self, patches: Any, pooled: Any, target: Batch) -> tuple[Any, Any]:
        """Return the loss of what patches show, and of what the class token says is there."""
        shown = sum(
            functional.cross_entropy(
                probe(patches).flatten(0, 1).float(), target.patches[name].flatten()
            )
            for name, probe in self.patches.items()
        )
        there = functional.binary_cross_entropy_with_logits(
            self.present(pooled).float(), target.present
        )
        return shown, there


class _Stream(IterableDataset):  # type: ignore[misc]
    def __init__(self, settings: Settings, start: int) -> None:
        self.settings, self.start = settings, start

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.start, self.settings.steps):
            yield batch(self.settings.seed, step, self.settings.size, self.settings.room)


def see(model: Any, images: Any) -> tuple[Any, Any]:
    """Return the features LLaVA takes of every patch, ``(B, 144, D)``, and the class token's."""
    seen = model.model.vision_tower(pixels(images), output_hidden_states=True)
    return seen.hidden_states[-2][:, 1:], seen.pooler_output


def read(model: Any, features: Any, target: Batch) -> tuple[Any, Any]:
    """Return logits and targets, ``(M, V)`` and ``(M,)``, at the tokens before an answer's.

    Every question sees the image and itself, at the positions it would have were it the only one.
    """
    size, words = target.tokens.shape
    before = 1 + PATCHES
    language = model.model.language_model
    start = torch.full((size, 1), prompt_start(), device=features.device)
    embeds = torch.cat(
        [
            language.embed_tokens(start),
            model.model.multi_modal_projector(features),
            language.embed_tokens(target.tokens),
        ],
        dim=1,
    )
    positions = torch.cat(
        [torch.arange(before, device=start.device).expand(size, -1), before + target.offsets], dim=1
    )
    length = before + words
    turns = torch.cat([torch.full((size, before), -2, device=start.device), target.turns], dim=1)
    causal = torch.ones(length, length, dtype=torch.bool, device=start.device).tril()
    same = turns[:, :, None] == turns[:, None, :]
    mask = causal & (same | (turns[:, None, :] == -2))
    states = language(
        inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=positions, use_cache=False
    ).last_hidden_state[:, before:]
    asked = target.targets != NOT_ASKED
    return model.lm_head(states[asked]).float(), target.targets[asked]


def score(logits: Any, target: Batch) -> dict[str, tuple[int, int]]:
    """Count the questions of each kind whose every token is the likeliest, and all of them."""
    asked = target.targets != NOT_ASKED
    right = logits.argmax(dim=-1) == target.targets[asked]
    row = torch.arange(len(asked), device=asked.device)[:, None].expand_as(asked)[asked]
    questions = target.kinds.shape[1]
    question = row * questions + target.turns[asked]
    whole = torch.ones(target.kinds.numel(), dtype=torch.long, device=asked.device)
    whole.scatter_reduce_(0, question, right.long(), "amin")
    kinds = target.kinds.flatten()
    return {
        kind: (int(whole[kinds == index].sum()), int((kinds == index).sum()))
        for index, kind in enumerate(KINDS)
    }


def rate_at(step: int, settings: Settings) -> float:
    """Learning rate: a linear rise, then half a cosine down to a hundredth of the peak."""
    risen = min(1.0, (step + 1) / settings.warmup)
    done = step / settings.steps
    return settings.rate * risen * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(out: Path, settings: Settings, resume: bool, init: Path | None, save_every: int) -> Any:
    """Run from the start, from `init` or from the checkpoint in `out`; return the model."""
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = out / "checkpoint.pt"
    model = build_model(settings.seed)
    if init is not None:
        from transformers import LlavaForConditionalGeneration

        model = LlavaForConditionalGeneration.from_pretrained(init, dtype=torch.float32)
    probes = Probes()
    model.to(device).train()
    probes.to(device)
    learnt = [*model.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": settings.decay},
            {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.rate,
        betas=(0.9, 0.98),
    )
    start = 0
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        probes.load_state_dict(saved["probes"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    log = (out / "train.log").open("a")
    log.write(json.dumps({"start": start, "device": str(device), **asdict(settings)}) + "\n")
    loader = DataLoader(_Stream(settings, start), batch_size=None, num_workers=1, prefetch_factor=8)
    totals = {"answers": 0.0, "patches": 0.0, "present": 0.0}
    counts: dict[str, list[int]] = {kind: [0, 0] for kind in KINDS}
    since, began = start, time.perf_counter()
    bar = tqdm(loader, initial=start, total=settings.steps, unit="step", mininterval=5)
    for step, target in enumerate(bar, start):
        target = _to(target, device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features, pooled = see(model, target.images)
            shown, there = probes(features, pooled, target)
            loss = settings.patch_weight * shown + settings.present_weight * there
            if step >= settings.tower_steps:
                logits, wanted = read(model, features, target)
                answers = functional.cross_entropy(logits, wanted)
                loss = loss + answers
                totals["answers"] += answers.item()
                for kind, (right, asked) in score(logits, target).items():
                    counts[kind][0] += right
                    counts[kind][1] += asked
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        totals["patches"] += shown.item()
        totals["present"] += there.item()
        done = step + 1
        if done % 50 == 0 or done == settings.steps:
            span = done - since
            line = {
                "step": done,
                "seconds": round((time.perf_counter() - began) / span, 3),
                **{name: round(total / span, 4) for name, total in totals.items()},
                **{k: round(right / asked, 3) for k, (right, asked) in counts.items() if asked},
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix(answers=line["answers"], patches=line["patches"], refresh=False)
            totals = dict.fromkeys(totals, 0.0)
            counts = {kind: [0, 0] for kind in KINDS}
            since, began = done, time.perf_counter()
        if done % save_every == 0 or done == settings.steps:
            state = {
                "model": model.state_dict(),
                "probes": probes.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "settings": asdict(settings),
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
    return model


def _to(target: Batch, device: Any) -> Batch:
    if device.type == "cpu":
        return target
    moved = {
        name: {k: v.to(device) for k, v in value.items()}
        if isinstance(value, dict)
        else value.to(device)
        for name, value in vars(target).items()
    }
    return Batch(**moved)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m secateur.lab.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/lab"), help="checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--init", type=Path, help="start from the weights of this folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250)
    for name, value in asdict(Settings()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    chosen = vars(parser.parse_args(arguments))
    torch.set_num_threads(chosen["threads"])
    settings = Settings(**{name: chosen[name] for name in asdict(Settings())})
    train(chosen["out"], settings, chosen["resume"], chosen["init"], chosen["save_every"])


if __name__ == "__main__":
    main()
