"""Thirty-two tokens on caches whose layers differ, against reading everything anew at every step.

The reference keeps no cache and drops nothing. It chooses by the formulas, from whole matrices of
attention, and hides what was dropped by masks, in each layer from whom that layer's cache forgot
it. What a cut makes anew is put in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.core.methods.sparsevlm import TABLES
from secateur.integrations.attach import attach
from secateur.integrations.transformers.internals import cache_in

STEPS = 32
ONE = {"words": ("what is in this picture ?",), "images": (1,)}
TWO = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}
COUNTS = (12, 8, 5)
SHARES = (0.7, 0.5, 0.2)
KEEP = 6
SIMPLE = {"thresholds": (9.0, 8.5, 8.0), "ratios": (1.0, 1.0, 1.0, 0.9)}


@dataclass
class Cut:
    """What one cut did to the tokens of a prompt."""

    alive: torch.Tensor
    """True (T,) at those that are left; T counts what the cut made."""
    order: torch.Tensor
    """Which of the tokens before it, and of those made, behind these, stands where (T,)."""
    shares: torch.Tensor | None
    """Of what those made are the means (M, T before)."""


class Slow:
    """A prompt (T tokens) that is read whole for every new token.

    `rule` says what is left of its `visual` tokens before each layer, `anew` whether positions
    then start again, and `forgets` whether new tokens see in no layer what was dropped in one.
    """

    def __init__(self, model, embeds, positions, visual, image, rule):
        self.model, self.decoder = model, model.model.language_model
        self.embeds, self.positions = embeds, positions
        self.visual, self.image, self.rule = visual, image, rule
        self.cuts: dict[int, Cut] = {}
        self._logits([])

    def tokens(self, steps):
        new: list[int] = []
        found = []
        for _ in range(steps):
            found.append(self._logits(new))
            new.append(int(found[-1].argmax()))
        return new, torch.stack(found)

    def _logits(self, new):
        prompt, more = len(self.embeds), len(new)
        ids = torch.tensor(new, dtype=torch.long)
        hidden = torch.cat([self.embeds, self.model.get_input_embeddings()(ids)])
        following = self.positions[..., -1:] + 1 + torch.arange(more)
        positions = torch.cat([self.positions, following], dim=-1)
        alive = torch.ones(prompt + more, dtype=torch.bool)
        self.now, self.kind = self.visual.clone(), self.image.clone()
        entered = hidden
        for number, layer in enumerate(self.decoder.layers):
            if number in self.rule.places:
                if number not in self.cuts:
                    state = State(self, number, entered, hidden, self._angles(positions), alive)
                    self.cuts[number] = self.rule.cut(state)
                hidden, alive = self._carried(self.cuts[number], hidden, more)
                if self.rule.anew:
                    counted = (alive.cumsum(0) - 1).clamp(min=0)
                    positions = counted.expand(*positions.shape[:-1], -1)
            entered = hidden
            hidden = layer(
                hidden[None],
                attention_mask=self._mask(alive, more)[None, None],
                position_embeddings=self._angles(positions),
                position_ids=None,
            )[0]
        return self.model.lm_head(self.decoder.norm(hidden))[-1]

    def _carried(self, cut, hidden, more):
        """What stood at a cut, with what it made in between."""
        prompt = len(hidden) - more
        made = hidden[:0] if cut.shares is None else cut.shares @ hidden[:prompt]
        laid = torch.cat([hidden[:prompt], made])[cut.order]
        seen = torch.cat([self.now, torch.ones(len(made), dtype=torch.bool)])[cut.order]
        kind = torch.cat([self.kind, -torch.ones(len(made), dtype=torch.long)])[cut.order]
        self.now, self.kind = seen & cut.alive, kind
        rest = torch.ones(more, dtype=torch.bool)
        return torch.cat([laid, hidden[prompt:]]), torch.cat([cut.alive, rest])

    def _mask(self, alive, more):
        total = len(alive)
        mask = torch.ones(total, total, dtype=torch.bool).tril() & alive
        if self.rule.forgets:
            for cut in self.cuts.values():  # which makes nothing anew
                mask[total - more :, : total - more] &= cut.alive
        return mask | torch.eye(total, dtype=torch.bool)

    def _angles(self, positions):
        return self.decoder.rotary_emb(self.embeds[None], positions[..., None, :])


class State:
    """What a rule sees of the prompt before a layer."""

    def __init__(self, slow, number, entered, hidden, angles, alive):
        self.before, self.layer = (slow.decoder.layers[n] for n in (number - 1, number))
        self.number, self.entered, self.hidden = number, entered, hidden
        self.angles, self.alive = tuple(x[0] for x in angles), alive
        self.visual, self.image, self.embeds = slow.now, slow.kind, slow.embeds

    def attention(self, layer, asking, keyed):
        """Softmax (H, T, T) of a layer's queries of `asking` over keys of `keyed`, causal."""
        own = layer.self_attn
        queries = self._rotated(own.q_proj(asking), own.head_dim)
        keys = self._rotated(own.k_proj(keyed), own.head_dim)
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        scores = queries @ keys.transpose(1, 2) / own.head_dim**0.5
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril() & self.alive
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)

    def _rotated(self, x, size):
        x = x.view(len(x), -1, size).transpose(0, 1)
        cos, sin = self.angles
        half = size // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * cos + turned * sin

    def keeping(self, places):
        """The cut that leaves of the visual tokens those at these places of the prompt."""
        alive = self.alive.clone()
        alive[self.visual] = False
        alive[places] = True
        return Cut(alive, torch.arange(len(alive)), None)

    def best(self, scores, count, among=None):
        """The places of the visual tokens of highest score."""
        among = self.visual if among is None else among
        places = among.nonzero().ravel()
        return places[scores[places].argsort(descending=True, stable=True)[:count]]


class FastV:
    """The last token, in the layer that has just run."""

    places, anew, forgets = (2,), False, False

    def cut(self, state):
        normed = state.before.input_layernorm(state.entered)
        scores = state.attention(state.before, normed, normed).mean(0)[-1]
        return state.keeping(state.best(scores, KEEP))


class PyramidDrop:
    """The last token, in the layer that comes next; each image a share of what it had."""

    places, anew, forgets = (1, 2, 3), True, False

    def cut(self, state):
        normed = state.layer.input_layernorm(state.hidden)
        scores = state.attention(state.layer, normed, normed).mean(0)[-1]
        kept = []
        for image in sorted(set(state.image.tolist()) - {-1}):
            own = state.image == image
            count = max(1, int(int(own.sum()) * SHARES[state.number - 1] + 1e-9))
            kept.append(state.best(scores, count, own & state.visual))
        return state.keeping(torch.cat(kept))


class SparseVLM:
    """What the raters among the words behind the image look at."""

    places, forgets = (1, 2, 3), False

    def __init__(self, version):
        self.version, self.anew = version, version == "1.0"

    def cut(self, state):
        if state.number == self.places[0]:
            image, words = state.embeds[state.visual], state.embeds[self._behind(state)]
            looks = (image @ words.T).softmax(-1).mean(0)
            self.raters = (looks > looks.mean()).nonzero().ravel()
        raters = self._behind(state)[self.raters]
        normed = state.before.input_layernorm(state.entered)
        seen = state.attention(state.before, normed, normed)[:, raters]
        if self.version == "2.0":
            ones = self._ones(state)
            seen = seen / (ones[raters] @ ones.T / ones.shape[1] ** 0.5)
        seen = seen.mean(1)
        if self.version == "2.0":
            heard = seen[:, state.visual].sum(1).argsort(descending=True, stable=True)[:2]
            seen = seen[heard]
        scores = seen.mean(0)
        count = min(COUNTS[state.number - 1], int(state.visual.sum()) - 1)
        kept = state.best(scores, count)
        cut = state.keeping(kept)
        return cut if self.version == "2.0" else self._recycling(state, scores, kept, cut)

    def _behind(self, state):
        words = state.alive & ~state.visual
        words[: int(state.visual.nonzero().max())] = False
        return words.nonzero().ravel()

    def _ones(self, state):
        cos, sin = state.angles
        half = cos.shape[1] // 2
        return torch.cat([(cos - sin)[:, :half], (cos + sin)[:, half:]], dim=1)

    def _recycling(self, state, scores, kept, cut):
        """The best of the dropped, clustered, behind the last that is kept."""
        dropped = state.visual.clone()
        dropped[kept] = False
        size = int(dropped.sum())
        some = min(int(0.3 * size) + 1, size)
        clusters = min(some // 10 + 1, some)
        places = state.best(scores, some, dropped)
        _, cluster = sc.density_clusters(state.hidden[places], clusters, clusters)
        shares = torch.zeros(clusters, len(state.alive))
        for place, number in zip(places.tolist(), cluster.tolist(), strict=True):
            shares[number, place] = 1.0
        shares = shares / shares.sum(1, keepdim=True)
        after, length = int(kept.max()) + 1, len(state.alive)
        new = length + torch.arange(clusters)
        order = torch.cat([torch.arange(after), new, torch.arange(after, length)])
        alive = torch.cat([cut.alive, torch.ones(clusters, dtype=torch.bool)])[order]
        return Cut(alive, order, shares)


class ERASE:
    """All but the image and the first fifteen, with queries of what entered, without its norm."""

    places, anew, forgets = (2,), False, True

    def cut(self, state):
        normed = state.before.input_layernorm(state.entered)
        seen = state.attention(state.before, state.entered, normed).mean(0)
        asking = ~state.visual
        asking[:15] = False
        return state.keeping(state.best(seen[asking].sum(0), self.count))


def rule(name):
    if name.startswith("sparsevlm"):
        return SparseVLM(name.rpartition(" ")[2])
    return {"fastv": FastV, "pyramiddrop": PyramidDrop, "erase": ERASE}[name]()


def method(name):
    return {
        "fastv": sc.published("fastv", keep=KEEP),
        "pyramiddrop": sc.published("pyramiddrop", shares=SHARES),
        "sparsevlm 1.0": sc.published("sparsevlm", keep=64, after=(1, 2, 3)),
        "sparsevlm 2.0": sc.published(
            "sparsevlm", keep=64, after=(1, 2, 3), version="2.0", heads=2
        ),
        "erase": sc.published("erase", keep=0.25, **SIMPLE),
    }[name]


def prompts(model, inputs, report, call, name):
    """Each prompt of a batch as the language model starts it."""
    ids = inputs["input_ids"].numpy()
    images = ids == model.config.image_token_id
    number = np.full(ids.shape, -1)
    for row in range(len(ids)):
        own = [n for n, of in enumerate(report.rows) if of == row]
        sizes = [sum(part.kept.size for part in report.pictures[n]) for n in own]
        number[row, images[row]] = np.repeat(np.arange(len(own)), sizes)
    for row, columns in enumerate(report.positions):
        real = torch.from_numpy(columns >= 0)
        own = columns[columns >= 0]
        visual = torch.from_numpy(images[row, own])
        image = torch.from_numpy(number[row, own])
        positions = call["position_ids"]
        positions = positions.expand(*positions.shape[:-2], len(ids), -1)[..., row, real]
        if positions.ndim == 2 and len(positions) == 4:
            positions = positions[1:]
        chosen = rule(name)
        if name == "erase":
            chosen.count = int(images[row].sum() * 0.25)
        yield Slow(model, call["inputs_embeds"][row, real], positions, visual, image, chosen)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only wait for each other over matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("batch", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize(
    "name", ["erase", "fastv", "pyramiddrop", "sparsevlm 1.0", "sparsevlm 2.0"]
)
@torch.no_grad()
def test_thirty_two_tokens(cases, calls, monkeypatch, name, batch, family):
    for version in TABLES:
        monkeypatch.setitem(TABLES[version], 64, COUNTS)
    case = cases[family]()
    model, inputs = case.model(), case.inputs(**batch)
    with attach(model, method(name), case.processor()) as att, calls(model) as seen:
        out = model.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    report = att.last
    assert all(report.inside)
    held = [int(layer.keys.shape[2]) for layer in cache_in(out).layers]
    differ = [after for after, (a, b) in enumerate(pairwise(held), 1) if a > b]
    assert differ == ([] if name == "erase" else list(rule(name).places))
    logits = torch.stack(out.logits, dim=1)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    for row, slow in enumerate(prompts(model, inputs, report, seen[0], name)):
        expected, by_step = slow.tokens(STEPS)
        assert tokens[row].tolist() == expected
        torch.testing.assert_close(logits[row], by_step, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_pyramiddrop_asks_the_next_layer(cases):
    """As its program does, by default too; without a processor the last token is the last word."""

    class Behind(sc.PyramidDrop):
        looks_ahead = False

    case = cases["llava"]()
    model, inputs = case.model(), case.inputs()
    first = []
    for method in (
        sc.published("pyramiddrop", shares=SHARES),
        sc.PyramidDrop(shares=SHARES),
        Behind(shares=SHARES),
    ):
        with attach(model, method) as att:
            model(**inputs)
        first.append(att.last.inside[0][0][1].tolist())
    assert first[0] == first[1] != first[2]
