"""DECIMER's decoder in PyTorch: reads molecules from any of their 256 visual tokens, in batches.

Six layers of 512 channels and eight heads, cross-attention over the tokens; sinusoids are added
to queries and keys behind their projections. Greedy in float32 with a cache of keys and values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor
Rule = Callable[[int, bool, int, Tensor, Tensor, Tensor], Tensor | None]
"""Of layers run, whether the next one is looked at, row, queries (H, 1, d), keys (H, n, d) and
places (n,) of the tokens left: which of those stay, or None where nothing is dropped then."""
WIDTH, HEADS, LAYERS, GRID = 512, 8, 6, 16
ROOM = 8
"""Steps for which the cache is made longer at once."""
DIGITS = dict(zip("!$^<>?£¢€§", "1234567890", strict=True))
"""How the model writes the digits of rings."""


@dataclass
class Reading:
    """What was read, and where the reader looked: means over heads of its cross-attention."""

    ids: list[list[int]]
    over_all: Tensor
    """Mean over layers and steps (R, k): what an oracle knows."""
    first: Tensor
    """Of the first step, mean over layers (R, k)."""
    shallow: Tensor
    """Of the first step in the first layer (R, k)."""


def _angles(places: np.ndarray, width: int) -> np.ndarray:
    scale = np.power(10000, (2 * (np.arange(width)[None] // 2)) / np.float32(width))
    return places[:, None] / scale


def steps(count: int) -> np.ndarray:
    """Sinusoids of places in the text: sines at even channels, cosines at odd ones."""
    angle = _angles(np.arange(count), WIDTH)
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return angle


def places() -> np.ndarray:
    """Sinusoids of places in the picture: one half of the channels for rows, one for columns."""

    def half(at: np.ndarray) -> np.ndarray:
        angle = np.float64(at)[:, None] / np.power(
            10000, (2 * (np.arange(WIDTH // 2)[None] // 2)) / np.float32(WIDTH // 2)
        )
        both = np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1)
        return both.reshape(len(at), -1)

    row, column = np.divmod(np.arange(GRID * GRID), GRID)
    return np.concatenate([half(row), half(column)], axis=1)


class Reader:
    """The decoder; ``read`` takes visual tokens with their places and gives words."""

    def __init__(self, weights: Path) -> None:
        stored = np.load(weights)
        w = [torch.from_numpy(stored[f"v{i}"]) for i in range(159)]
        self.words, self.last = w[0], w[157:159]
        self.layers = [w[1 + 26 * i : 27 + 26 * i] for i in range(LAYERS)]
        self.steps = torch.tensor(steps(302), dtype=torch.float32)
        self.places = torch.tensor(places(), dtype=torch.float32)
        told = json.loads(weights.with_name("words.json").read_text())
        self.written = {int(key): word for key, word in told["index_word"].items()}
        self.start, self.end = told["word_index"]["<start>"], told["word_index"]["<end>"]

    def keys(self, tokens: Tensor) -> Tensor:
        """What the first layer compares with all 256 tokens (..., 256, D), places included."""
        w = self.layers[0]
        return tokens @ w[10] + w[11] + self.places

    def text(self, ids: list[int]) -> str:
        """SMILES from words."""
        joined = "".join(self.written[i] for i in ids if i not in (self.start, self.end))
        return "".join(DIGITS.get(letter, letter) for letter in joined)

    @torch.inference_mode()
    def seen(self, tokens: Tensor, rule: Rule) -> Tensor:
        """Which of all tokens (R, 256, D) each layer sees where a rule drops some between layers.

        The rule is asked in the first step, before anything is read, after each layer twice: about
        what that layer looks at, and about what the next one would look at.
        """
        rows = len(tokens)
        seen = torch.ones(rows, LAYERS, GRID * GRID, dtype=torch.bool)
        x, p = self.words[self.start].expand(rows, -1) * math.sqrt(WIDTH), self.steps[0]
        for i, w in enumerate(self.layers):
            # Alone with itself, the first word attends to itself.
            one = _norm((x @ w[4] + w[5]) @ w[6] + w[7] + x, w[20], w[21])
            q = (one @ w[8] + w[9] + p).view(rows, HEADS, 1, -1)
            k, v = (
                y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for y in (tokens @ w[10] + w[11] + self.places, tokens @ w[12] + w[13])
            )
            self._ask(rule, i, True, q, k, seen)
            said = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen[:, i, None, None]
            )
            two = _norm(said.flatten(1) @ w[14] + w[15] + one, w[22], w[23])
            x = _norm(torch.relu(two @ w[16] + w[17]) @ w[18] + w[19] + two, w[24], w[25])
            self._ask(rule, i + 1, False, q, k, seen)
        return seen

    @staticmethod
    def _ask(rule: Rule, after: int, ahead: bool, q: Tensor, k: Tensor, seen: Tensor) -> None:
        if not 0 < after < LAYERS:
            return
        for row in range(len(seen)):
            left = seen[row, after].nonzero()[:, 0]
            kept = rule(after, ahead, row, q[row], k[row][:, left], left)
            if kept is not None:
                seen[row, after:] = False
                seen[row, after:, left[kept]] = True

    @torch.inference_mode()
    def read(self, tokens: Tensor, at: Tensor, most: Any, seen: Tensor | None = None) -> Reading:
        """Read rows (R, k, D) of tokens that stand at `at` (R, k), each up to `most` (R,) words.

        `seen` (R, layers, k) says which of them each layer sees, all when absent.
        """
        rows, k = at.shape
        memory = [
            (
                _heads(tokens @ w[10] + w[11] + self.places[at]),
                _heads(tokens @ w[12] + w[13]),
                _bias(seen, i),
            )
            for i, w in enumerate(self.layers)
        ]
        limit = torch.as_tensor(np.broadcast_to(most, (rows,)).copy())
        ids: list[list[int]] = [[self.start] for _ in range(rows)]
        looked, first, shallow = torch.zeros(rows, k), torch.zeros(rows, k), torch.zeros(rows, k)
        active, word = torch.arange(rows), torch.full((rows,), self.start)
        going = torch.ones(rows, dtype=torch.bool)
        cache = [(torch.empty(rows * HEADS, 0, WIDTH // HEADS),) * 2 for _ in self.layers]
        for t in range(int(limit.max())):
            if t % ROOM == 0:
                # Rows that are done leave, and there is room for the next steps.
                some = going.repeat_interleave(HEADS)
                active, word, going = active[going], word[going], going[going]
                memory = [(a[some], b[some], None if c is None else c[some]) for a, b, c in memory]
                cache = [(_longer(a[some]), _longer(b[some])) for a, b in cache]
            x, seen = self._step(word, t, memory, cache)
            total = torch.stack(seen).mean(0)
            looked[active[going]] += total[going]
            if t == 0:
                first, shallow = total, seen[0]
            word = (x @ self.last[0] + self.last[1]).argmax(-1)
            for row, each in zip(active[going].tolist(), word[going].tolist(), strict=True):
                ids[row].append(each)
            going = going & (word != self.end) & (t + 1 < limit[active])
            if not bool(going.any()):
                break
        count = torch.tensor([len(each) - 1 for each in ids])
        return Reading(ids, looked / count[:, None], first, shallow)

    @torch.inference_mode()
    def judge(
        self, tokens: Tensor, at: Tensor, ids: list[list[int]], seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whether each row would read exactly `ids`, and how likely it finds them, in one pass.

        The first says for rows (R, k, D) what `read` would: greedy goes along `ids` as long as
        each next word is the likeliest after those before. The second is the mean logarithm of
        the probability of a word.
        """
        longest = max(map(len, ids))
        padded = torch.tensor([each + [self.end] * (longest - len(each)) for each in ids])
        asked = torch.arange(longest - 1) < torch.tensor([[len(each) - 1] for each in ids])
        x = self.words[padded[:, :-1]] * math.sqrt(WIDTH)
        p, places = self.steps[: longest - 1], self.places[at]
        split = lambda y: y.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        attend = torch.nn.functional.scaled_dot_product_attention
        for i, w in enumerate(self.layers):
            q, k, v = x @ w[0] + w[1] + p, x @ w[2] + w[3] + p, x @ w[4] + w[5]
            said = attend(split(q), split(k), split(v), is_causal=True)
            one = _norm(said.transpose(1, 2).flatten(2) @ w[6] + w[7] + x, w[20], w[21])
            q, k, v = one @ w[8] + w[9] + p, tokens @ w[10] + w[11] + places, tokens @ w[12] + w[13]
            mask = None if seen is None else seen[:, i, None, None]
            said = attend(split(q), split(k), split(v), attn_mask=mask)
            two = _norm(said.transpose(1, 2).flatten(2) @ w[14] + w[15] + one, w[22], w[23])
            x = _norm(torch.relu(two @ w[16] + w[17]) @ w[18] + w[19] + two, w[24], w[25])
        likely = (x @ self.last[0] + self.last[1]).log_softmax(-1)
        wanted = likely.gather(-1, padded[:, 1:, None])[..., 0]
        same = ((likely.argmax(-1) == padded[:, 1:]) | ~asked).all(-1)
        return same, (wanted * asked).sum(-1) / asked.sum(-1)

    def _step(
        self, word: Tensor, t: int, memory: list[Any], cache: list[Any]
    ) -> tuple[Tensor, list[Tensor]]:
        x, p, seen = self.words[word] * math.sqrt(WIDTH), self.steps[t], []
        for w, (mk, mv, hidden), (ck, cv) in zip(self.layers, memory, cache, strict=True):
            ck[:, t] = (x @ w[2] + w[3] + p).view(-1, WIDTH // HEADS)
            cv[:, t] = (x @ w[4] + w[5]).view(-1, WIDTH // HEADS)
            said, _ = _attend(x @ w[0] + w[1] + p, ck, cv, t + 1)
            one = _norm(said @ w[6] + w[7] + x, w[20], w[21])
            said, weight = _attend(one @ w[8] + w[9] + p, mk, mv, mk.shape[1], hidden)
            two = _norm(said @ w[14] + w[15] + one, w[22], w[23])
            x = _norm(torch.relu(two @ w[16] + w[17]) @ w[18] + w[19] + two, w[24], w[25])
            seen.append(weight.view(-1, HEADS, weight.shape[-1]).mean(1))
        return x, seen


def _heads(x: Tensor) -> Tensor:
    """Rows and heads in one axis: (R H, k, 64)."""
    split = x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(-2, -3)
    return split.reshape(-1, *split.shape[-2:])


def _longer(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), ROOM, x.shape[-1])], dim=1)


def _bias(seen: Tensor | None, layer: int) -> Tensor | None:
    """What is added to scores (R H, 1, k) where a layer does not see everything."""
    if seen is None:
        return None
    hidden = torch.where(seen[:, layer], 0.0, -math.inf)
    return hidden.repeat_interleave(HEADS, dim=0)[:, None]


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, known: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    q = query.view(-1, 1, WIDTH // HEADS)
    scores = torch.bmm(q, keys.mT) / math.sqrt(WIDTH // HEADS)
    scores[..., known:] = -math.inf
    if bias is not None:
        scores = scores + bias
    weight = scores.softmax(-1)
    return torch.bmm(weight, values).view(-1, WIDTH), weight[:, 0]


def _norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, (WIDTH,), gain, shift, 1e-6)
