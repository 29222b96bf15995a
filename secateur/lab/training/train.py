"""Train the lab's model: ``python -m secateur.lab.train --out build/lab``.

First the vision tower learns to name what every patch shows, then the whole model learns to answer,
then the CLIP twin's text tower learns against the vision tower. What is shipped is written to the
folder ``weights`` in ``--out``, and the accuracy on held-out scenes to ``accuracy.json``.

A run that was stopped goes on with ``--resume``: model, optimiser and place in the stream of scenes
are in ``checkpoint.pt``. The same arguments draw the same scenes in the same order.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from secateur.lab.answers import evaluate
from secateur.lab.model import WIDTH, build_model, build_processor
from secateur.lab.objects import BOARD, KINDS, SHAPES
from secateur.lab.packaged import TEXT, WEIGHTS, save
from secateur.lab.training.attention import attend_fast, in_order, mixed
from secateur.lab.training.batches import NOT_ASKED, PRESENT, PROBES, Batch, batch, pixels
from secateur.lab.training.contrast import TextSettings, train_text
from secateur.lab.training.growing import grow
from secateur.lab.training.journal import Journal
from secateur.lab.training.muon import BatchedMuon
from secateur.lab.training.reading import read, score

HEARD = (3, -3, -3)
"""Which state of the language model, the words' own the first, tells each part of `Batch.heard`."""
ASIDE, WANTED, HOLDS = -3, -3, -2
"""Which of them tells where to look beside a thing and for what, and which, then, what is there."""
COPIED = 2
"""The layer of the language model of which a copy is put in when it grows."""


@dataclass(frozen=True)
class Settings:
    """What a run is made of; saved with it.

    Attributes
    ----------
    steps, tower_steps
        How many in all, and how many of them train the tower alone.
    size, room
        Scenes a batch, and tokens of questions and answers on each at most.
    rate, adam_rate, decay, warmup
        Peak learning rates of Muon, which trains the matrices between embeddings and heads, and of
        AdamW, which trains the rest; a cosine takes both to a hundredth. Weight decay; steps of
        warm-up.
    layers
        Of the language model, 0 for as many as it begins with. Those that are added change nothing
        at first.
    focus
        Share of relation and dense questions, see `secateur.lab.training.batches.batch`.
    frozen
        Leave the vision tower as it is.
    patch_weight, present_weight, point_weight, hear_weight
        How much the patch probes, the class token's probe, the pointing of some attention heads and
        knowing where what is named lies count beside the answers.
    seed
        Of the weights and of the scenes.
    """

    steps: int = 6000
    tower_steps: int = 250
    size: int = 16
    room: int = 112
    rate: float = 1e-2
    adam_rate: float = 1.2e-3
    decay: float = 0.02
    warmup: int = 50
    layers: int = 0
    focus: float = 0.0
    frozen: bool = False
    patch_weight: float = 0.5
    present_weight: float = 0.5
    point_weight: float = 0.3
    hear_weight: float = 0.0
    seed: int = 0


class Probes(nn.Module):  # type: ignore[misc]
    """Linear readings of the tower that teach it and are thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in PROBES.items()})
        self.present = nn.Linear(WIDTH, PRESENT)
        self.heard = nn.ModuleList(nn.Linear(WIDTH, BOARD * BOARD) for _ in HEARD)
        self.aside = nn.Linear(WIDTH, BOARD * BOARD)
        self.holds = nn.Linear(WIDTH, len(SHAPES))
        self.wanted = nn.Linear(WIDTH, len(SHAPES))

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

    def hear(self, words: Sequence[Any], target: Batch) -> Any:
        """Return the loss of where words say that what they name lies, and what lies beside it.

        0 where no word says so.
        """
        loss = torch.zeros((), device=target.heard.device)
        choices = [*zip(HEARD, self.heard, target.heard.unbind(dim=-1), strict=True)]
        for layer, probe, told in (*choices, (WANTED, self.wanted, target.wanted)):
            named = told != NOT_ASKED
            if named.any():
                said = probe(functional.rms_norm(words[layer][named], (WIDTH,)))
                loss = loss + functional.cross_entropy(said.float(), told[named])
        searched = target.aside.any(dim=-1)
        if searched.any():
            for layer, probe, there in (
                (ASIDE, self.aside, target.aside),
                (HOLDS, self.holds, target.holds),
            ):
                said = probe(functional.rms_norm(words[layer][searched], (WIDTH,))).float()
                missed = functional.binary_cross_entropy_with_logits(said, there[searched].float())
                loss = loss + there.shape[-1] * missed
        return loss


class _Stream(IterableDataset):  # type: ignore[misc]
    """Batches with their numbers; whoever shares the counter shares the stream."""

    def __init__(self, settings: Settings, counter: Any) -> None:
        self.settings, self.counter = settings, counter

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        while True:
            with self.counter.get_lock():
                step = self.counter.value
                self.counter.value += 1
            if step >= self.settings.steps:
                return
            given = self.settings
            yield step, batch(given.seed, step, given.size, given.room, given.focus)


def see(model: Any, images: Any) -> tuple[Any, Any]:
    """Return the features LLaVA takes of every patch, ``(B, 144, D)``, and the class token's."""
    seen = model.model.vision_tower(pixels(images), output_hidden_states=True)
    return seen.hidden_states[-2][:, 1:], seen.pooler_output


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rates: a linear rise, then half a cosine down to a hundredth."""
    risen = min(1.0, (step + 1) / warmup)
    done = step / steps
    return risen * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class Run:
    """A model in training: everything that a checkpoint holds."""

    model: Any
    probes: Probes
    optimizers: tuple[Any, Any]
    settings: Settings
    step: int = 0

    @classmethod
    def begin(cls, settings: Settings, init: Path | None, device: Any) -> Run:
        """Start from random weights, or from those that were saved in the folder `init`."""
        model = build_model(settings.seed)
        if init is not None:
            model = type(model).from_pretrained(init, dtype=torch.float32)
        begins = model.config.text_config.num_hidden_layers
        more = (settings.layers or begins) - begins
        if more < 0:
            raise ValueError(f"layers: it begins with {begins}, and none are taken away")
        if more:
            model = grow(model, [COPIED] * more)
        model.model.vision_tower.requires_grad_(not settings.frozen)
        model.to(device).train()
        attend_fast(model, device)
        probes = Probes().to(device)
        hidden = [
            weight
            for name, weight in model.named_parameters()
            if weight.requires_grad
            and weight.ndim == 2
            and (".layers." in name or "projector" in name)
        ]
        inner = set(hidden)
        learns = [p for p in (*model.parameters(), *probes.parameters()) if p.requires_grad]
        rest = [p for p in learns if p not in inner]
        muon = BatchedMuon(hidden, weight_decay=settings.decay, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98))
        return cls(model, probes, (muon, adam), settings)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.probes.load_state_dict(saved["probes"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]

    def save(self, path: Path) -> None:
        """Write a checkpoint; one that was there stays until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "probes": self.probes.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "settings": asdict(self.settings),
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def share(self) -> None:
        """Move everything that learns into memory that forked processes share."""
        self.model.share_memory()
        self.probes.share_memory()
        # What the optimisers would make at a parameter's first step, in every process its own.
        muon, adam = self.optimizers
        for group in muon.param_groups:
            for weight in group["params"]:
                muon.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        for group in adam.param_groups:
            for weight in group["params"]:
                adam.state[weight].setdefault("step", torch.zeros(()))
                adam.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                adam.state[weight].setdefault("exp_avg_sq", torch.zeros_like(weight))
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.share_memory_()


def train(
    out: Path,
    settings: Settings,
    *,
    resume: bool = False,
    init: Path | None = None,
    processes: int = 1,
    save_every: int = 250,
) -> Run:
    """Train, and keep a checkpoint and a log in `out`.

    On a CPU several processes of one thread each may learn on the same weights: each works out a
    gradient of a batch of its own and takes its step when the lock is free, on weights that the
    others may have moved meanwhile. None waits for another, so it is robust against neighbours
    that take a core, where threads of one process would all wait for the slowest.

    Parameters
    ----------
    out
        Folder for ``checkpoint.pt`` and ``train.log``.
    settings
        Of the run.
    resume
        Go on from the checkpoint in `out` if there is one.
    init
        Folder of a saved model to start from.
    processes
        How many; 1 on a GPU.
    save_every
        Steps between checkpoints.

    Returns
    -------
    Run
        The trained model with all that was learnt beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run.begin(settings, init, device)
    if resume and (out / "checkpoint.pt").exists():
        run.load(out / "checkpoint.pt")
    context = multiprocessing.get_context("fork")
    counter, lock = context.Value("q", run.step), context.Lock()
    others = []
    if processes > 1:
        run.share()
        others = [
            context.Process(target=_learn, args=(run, counter, lock), daemon=True)
            for _ in range(processes - 1)
        ]
    for process in others:
        process.start()
    journal = Journal(
        out / "train.log",
        start=run.step,
        device=str(device),
        processes=processes,
        **asdict(settings),
    )
    _learn(run, counter, lock, out, journal, save_every)
    for process in others:
        process.join()
    run.step = settings.steps
    run.save(out / "checkpoint.pt")
    return run


@in_order()
def _learn(
    run: Run,
    counter: Any,
    lock: Any,
    out: Path | None = None,
    journal: Journal | None = None,
    save_every: int = 0,
) -> None:
    """Take steps until the counter has reached the last; with `out`, keep the books too."""
    settings, model, probes = run.settings, run.model, run.probes
    device = model.device
    loaders = 0 if device.type == "cpu" else min(12, os.cpu_count() or 1)
    loader = DataLoader(_Stream(settings, counter), batch_size=None, num_workers=loaders)
    bar = tqdm(
        initial=run.step, total=settings.steps, unit="step", mininterval=5, disable=journal is None
    )
    due = run.step
    peaks = (settings.rate, settings.adam_rate)
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    learnt = [weight for group in groups for weight in group["params"]]
    parent = multiprocessing.parent_process()
    for step, drawn in loader:
        if parent is not None and not parent.is_alive():
            return
        target = _to(drawn, device)
        counts = {}
        with mixed(device):
            with torch.set_grad_enabled(not settings.frozen):
                features, pooled = see(model, target.images)
            loss, losses = torch.zeros((), device=device), {}
            if not settings.frozen:
                shown, there = probes(features, pooled, target)
                loss = settings.patch_weight * shown + settings.present_weight * there
                losses = {"patches": shown.item(), "present": there.item()}
            if step >= settings.tower_steps:
                found = read(model, features, target)
                told = functional.cross_entropy(found.logits, found.wanted)
                loss = loss + told + settings.point_weight * found.pointing
                losses |= {"answers": told.item(), "pointing": found.pointing.item()}
                if settings.hear_weight:
                    hearing = probes.hear(found.words, target)
                    loss = loss + settings.hear_weight * hearing
                    losses["hearing"] = hearing.item()
                counts = score(found.logits, target, KINDS)
        gradients = torch.autograd.grad(loss, learnt, allow_unused=True)
        with lock:
            for parameter, gradient in zip(learnt, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(learnt, 1.0)
            for optimizer, peak in zip(run.optimizers, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate_at(step, settings.steps, settings.warmup)
                optimizer.step()
            run.step = step + 1
            if out is not None and run.step - due >= save_every:
                due = run.step
                run.save(out / "checkpoint.pt")
        if journal is not None:
            journal.note(losses, counts)
            bar.update(run.step - bar.n)
            if journal.steps == 50:
                journal.write(run.step)
                bar.set_postfix(losses, refresh=False)
    bar.close()


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
    parser.add_argument("--processes", type=int, default=1, help="on a CPU: one thread each")
    parser.add_argument("--text-steps", type=int, default=TextSettings.steps, help="CLIP twin")
    parser.add_argument("--scenes", type=int, default=200, help="held-out, to evaluate on")
    parser.add_argument("--save-every", type=int, default=250)
    for name, value in asdict(Settings()).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"default {value}")
    chosen = vars(parser.parse_args(arguments))
    settings = Settings(**{name: chosen[name] for name in asdict(Settings())})
    if chosen["processes"] > 1:
        torch.set_num_threads(1)
    run = train(
        chosen["out"],
        settings,
        resume=chosen["resume"],
        init=chosen["init"],
        processes=chosen["processes"],
        save_every=chosen["save_every"],
    )
    text = TextSettings(steps=chosen["text_steps"])
    model = run.model.eval()
    model.set_attn_implementation("sdpa")
    known = chosen["init"] and chosen["init"] / TEXT
    known = known if known and known.is_dir() else None
    clip = train_text(model, chosen["out"], text, known)
    save(model, clip, chosen["out"] / WEIGHTS)
    reached = evaluate(model.float(), build_processor(), chosen["scenes"], progress=True)
    (chosen["out"] / "accuracy.json").write_text(json.dumps(reached, indent=1) + "\n")
    for kind, share in reached.items():
        print(f"{kind:10} {100 * share:5.1f} %")


if __name__ == "__main__":
    main()
