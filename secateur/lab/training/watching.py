"""Train the lab's model that watches: ``python -m secateur.lab.training.watching --init FOLDER``.

It starts from a model for pictures with a language model of four layers, ``benchmarks/lab-four`` of
the repository, whose tower and projector stay as they are; the language model learns from clips
and, beside them, from pictures as clips of one frame. A run that was stopped goes on with
``--resume``. What is shipped is written to the folder ``watcher`` in ``--out``, and the accuracy on
held-out clips to ``accuracy.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from secateur.lab.answers import HELD_OUT
from secateur.lab.clip import FRAMES, clips
from secateur.lab.model import WIDTH
from secateur.lab.objects import COLOURS
from secateur.lab.packaged import WATCHER, save_watcher
from secateur.lab.training.attention import attend_fast, in_order, mixed
from secateur.lab.training.batches import NAMES, NOT_ASKED, pixels
from secateur.lab.training.filming import CHANGES, EVENTS, TAUGHT, Film, film, stills
from secateur.lab.training.journal import Journal
from secateur.lab.training.muon import BatchedMuon
from secateur.lab.training.reading import Read, read_visuals, score
from secateur.lab.training.train import rate_at
from secateur.lab.watcher import FRESH, build_reader, evaluate_watching, grown_from

POINTING = (FRESH + 1, FRESH + 2)
"""Layers whose first head is taught to look at what is asked."""
NOTICED, UNDERSTOOD = FRESH + 1, FRESH + 2
"""After so many layers a token should know its frame and whether it changed, and what happens."""


@dataclass(frozen=True)
class Settings:
    """What a run is made of; saved with it.

    Attributes
    ----------
    steps
        How many.
    size, pictures, room
        Clips and pictures a batch, and tokens of questions and answers on each at most.
    rate, adam_rate, decay, warmup
        As of the model for pictures.
    writing
        How much faster the fresh matrices learn that write into the stream of states, where the
        features of pictures are a thousand times as large as words.
    probe_weight, point_weight
        How much knowing what happens, and the pointing of two heads, count beside the answers.
    thrifty
        Until which share of the steps frames that show the same are encoded once.
    seed
        Of the fresh weights, of the clips and of the scenes.
    """

    steps: int = 4000
    size: int = 6
    pictures: int = 4
    room: int = 112
    rate: float = 6e-3
    adam_rate: float = 8e-4
    decay: float = 0.02
    warmup: int = 50
    writing: float = 6.0
    probe_weight: float = 0.3
    point_weight: float = 0.2
    thrifty: float = 0.6
    seed: int = 0


class Notes(nn.Module):  # type: ignore[misc]
    """Linear readings of visual tokens that teach the first layers and are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Linear(WIDTH, 2 * FRAMES)
        self.change = nn.Linear(WIDTH, len(CHANGES))
        self.event = nn.Linear(WIDTH, len(EVENTS))
        self.name = nn.Linear(WIDTH, len(NAMES))
        self.colour = nn.Linear(WIDTH, len(COLOURS))

    def forward(self, states: Sequence[Any], target: Film) -> dict[str, Any]:
        """Losses: which frame a token is of, whether it changed, what happens, and to what."""
        size, frames = target.same.shape
        per_frame = target.changes.shape[1] // frames
        when = torch.arange(frames).repeat_interleave(per_frame).expand(size, -1)
        found = {}
        for told, probe, after, wanted in (
            ("frame", self.frame, NOTICED, when),
            ("change", self.change, NOTICED, target.changes),
            ("event", self.event, UNDERSTOOD, target.events),
            ("name", self.name, UNDERSTOOD, target.names),
            ("colour", self.colour, UNDERSTOOD, target.colours),
        ):
            if wanted.eq(NOT_ASKED).all():
                found[told] = states[0].new_zeros(())
                continue
            level = functional.rms_norm(states[after][:, :-1].float(), (WIDTH,))
            said = probe(level).flatten(0, 1).float()
            weight = torch.ones(said.shape[1])
            if told in ("change", "event"):
                weight[0] = 0.1  # nearly everywhere nothing happens
            found[told] = functional.cross_entropy(said, wanted.flatten(), weight)
        return found


def seen(model: Any, target: Film, thrifty: bool) -> Any:
    """What the language model gets of every clip, ``(B, N + 1, D)``: pooled frames, a newline."""
    whole = model.model
    images, same = target.images, target.same
    size, frames = same.shape
    with torch.no_grad():
        if thrifty:
            index = torch.arange(size)[:, None] * frames + same
            distinct, back = index.flatten().unique(return_inverse=True)
        else:
            distinct = back = torch.arange(size * frames)
        tower = whole.vision_tower(pixels(images.flatten(0, 1)[distinct]))
        tokens = whole.apply_pooling(
            whole.multi_modal_projector(tower.last_hidden_state[:, 1:]).float()
        )
    tokens = tokens[back].reshape(size, -1, WIDTH)
    newline = whole.image_newline.to(tokens.dtype).expand(size, 1, -1)
    return torch.cat([tokens, newline], dim=1)


@dataclass
class Run:
    """A model in training: everything that a checkpoint holds."""

    model: Any
    notes: Notes
    optimizers: tuple[Any, Any]
    settings: Settings
    step: int = 0

    @classmethod
    def begin(cls, settings: Settings, init: Path) -> Run:
        """Start from the model for pictures that was saved in the folder `init`."""
        from transformers import LlavaForConditionalGeneration

        pictures = LlavaForConditionalGeneration.from_pretrained(init, dtype=torch.float32)
        model = grown_from(pictures, settings.seed).train()
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(False)
        attend_fast(model, model.device)
        notes = Notes()
        learnt = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
        hidden = [(name, x) for name, x in learnt if x.ndim == 2 and ".layers." in name]
        inner = {x for _, x in hidden}
        rest = [x for x in (*(x for _, x in learnt), *notes.parameters()) if x not in inner]
        groups = [
            {"params": [x for name, x in hidden if _writes(name) is writes], "writes": writes}
            for writes in (False, True)
        ]
        muon = BatchedMuon(groups, weight_decay=settings.decay, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98))
        return cls(model, notes, (muon, adam), settings)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.notes.load_state_dict(saved["notes"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]

    def save(self, path: Path) -> None:
        """Write a checkpoint; one that was there stays until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "notes": self.notes.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "settings": asdict(self.settings),
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)


def _writes(name: str) -> bool:
    """Whether it is a matrix of a fresh layer that writes into the stream of states."""
    layer = int(name.split(".layers.")[1].split(".")[0])
    return 1 <= layer <= FRESH and ("o_proj" in name or "down_proj" in name)


def losses_of(run: Run, target: Film, thrifty: bool) -> tuple[dict[str, Any], Read]:
    """The losses of a batch by name, and what was read."""
    pointing = dict.fromkeys(POINTING, target.looks)
    found = read_visuals(run.model, seen(run.model, target, thrifty), target, pointing)
    told = functional.cross_entropy(found.logits, found.wanted)
    named = {"answers": told, "pointing": found.pointing}
    return named | run.notes(found.states, target), found


@in_order()
def train(
    out: Path, settings: Settings, init: Path, *, resume: bool = False, save_every: int = 100
) -> Run:
    """Train, and keep ``checkpoint.pt`` and ``train.log`` in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run.begin(settings, init)
    if resume and (out / "checkpoint.pt").exists():
        run.load(out / "checkpoint.pt")
    journal = Journal(out / "train.log", start=run.step, **asdict(settings))
    weights = {
        "answers": 1.0,
        "pointing": settings.point_weight,
        **dict.fromkeys(("frame", "change", "event", "name", "colour"), settings.probe_weight),
    }
    learnt = [x for each in run.optimizers for group in each.param_groups for x in group["params"]]
    peaks = (settings.rate, settings.adam_rate)
    for step in tqdm(range(run.step, settings.steps), unit="step", mininterval=30):
        drawn = film(settings.seed, step, settings.size, settings.room)
        still = stills(settings.seed, step, settings.pictures, settings.room)
        thrifty = step < settings.thrifty * settings.steps
        with mixed(run.model.device):
            losses, found = losses_of(run, drawn, thrifty)
            beside, of_stills = losses_of(run, still, False)
            loss = sum(weight * losses[name] for name, weight in weights.items())
            loss = loss + 0.3 * (beside["answers"] + settings.point_weight * beside["pointing"])
        counts = score(found.logits, drawn, TAUGHT)
        counts["picture"] = score(of_stills.logits, still, TAUGHT)["picture"]
        share = rate_at(step, settings.steps, settings.warmup)
        for optimizer, peak in zip(run.optimizers, peaks, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                faster = settings.writing if group.get("writes") else 1.0
                group["lr"] = peak * faster * share
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
        run.step = step + 1
        journal.note({name: x.item() for name, x in losses.items()}, counts)
        if journal.steps == 50:
            journal.write(run.step)
        if run.step % save_every == 0:
            run.save(out / "checkpoint.pt")
    run.save(out / "checkpoint.pt")
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m secateur.lab.training.watching", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("build/watch"), help="checkpoint and log")
    parser.add_argument("--init", type=Path, required=True, help="folder of a model for pictures")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--clips", type=int, default=100, help="held-out, to evaluate on")
    parser.add_argument("--save-every", type=int, default=100)
    for name, value in asdict(Settings()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    chosen = vars(parser.parse_args(arguments))
    settings = Settings(**{name: chosen[name] for name in asdict(Settings())})
    run = train(
        chosen["out"],
        settings,
        chosen["init"],
        resume=chosen["resume"],
        save_every=chosen["save_every"],
    )
    model = run.model.eval()
    model.set_attn_implementation("sdpa")
    save_watcher(model, chosen["out"] / WATCHER)
    held_out = clips(chosen["clips"], HELD_OUT)
    reached = evaluate_watching(model.float(), build_reader(), held_out)
    (chosen["out"] / "accuracy.json").write_text(json.dumps(reached, indent=1) + "\n")
    for kind, share in reached.items():
        print(f"{kind:10} {100 * share:5.1f} %")


if __name__ == "__main__":
    main()
