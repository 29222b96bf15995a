"""MMTok: the tokens that cover the words and the image at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from secateur.core.arrays import Array, constant, device, like, namespace, shaped, spell, wide
from secateur.core.inputs import INPUTS, Tokens
from secateur.core.maximize import maximize
from secateur.core.methods.base import Method, Program, require_positive
from secateur.core.objectives import FacilityLocation, SoftmaxBlock
from secateur.core.relevance import check_fit
from secateur.core.selection import Selection


@dataclass(frozen=True)
class MMTok(Method):
    r"""Maximum coverage of two modalities: every word and every token finds one that stands for it.

    .. math::
        P_{lj} &= \operatorname{softmax}_j \cos(t_l, x_j) / \tau_t, \qquad
        Q_{ij} = \operatorname{softmax}_j \cos(v_i, v_j) / \tau_v \\
        f(S) &= \frac{1}{L} \sum_l \max_{j \in S} P_{lj}
            + \frac{\alpha}{N} \sum_i \max_{j \in S} Q_{ij}

    and f is maximised greedily. t are the L words of the `text`, x the tokens in the space of
    the text (`embeds`, the `features` where there are none), v the `states` before the
    projector.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    alpha
        How much covering the image counts beside covering the words.
    text_temperature
        Of the softmax of words over tokens; the authors take 0.02 for LLaVA, 0.01 for
        Qwen2.5-VL.
    temperature
        Of the softmax of tokens over tokens.

    Notes
    -----
    Every row sums to 1, so a token that is much like one row is worth more than one that is a
    little like many; the temperatures say how much of a row one token can cover. f is a
    facility location over L + N rows: monotone and submodular, so greedy reaches 1 - 1/e of the
    best set, and `Selection.guarantee` says how much for the set at hand.

    O((L + N) N D) time, O((L + N) D) memory: entries are worked out when they are asked for,
    and kept in a matrix only where one fits a block of work. On a CPU, of more, those that say who
    may be picked next are in single precision: picks and values are the same, and the
    guarantee is a little lower.

    In Qwen-VL the states are what the merger takes, averaged over the patches of a token. The
    authors' program for Qwen2.5-VL keeps a fifth of all images' tokens together and reads the
    message word by word: ``keep=0.2, text_temperature=0.01``, but a budget an image and the
    prompt's own tokens, is what an attachment has of it.

    Tokens that are not `selectable` (a padded border) cannot be picked, but are covered like
    the rest; no more are kept than are selectable, where the authors' program goes on to pick
    token 0 again and again. Words that `text_mask` leaves out do not count; several texts (a
    list) count equally, each with its own words.

    References
    ----------
    Dong et al., MMTok, ICLR 2026, arXiv 2508.18264.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    >>> tokens = sc.Tokens(features=x, states=x, text=np.array([[0.0, 2.0]]))
    >>> chosen = sc.MMTok(keep=2).select(tokens)
    >>> chosen.indices, round(float(chosen.guarantee), 2)
    (array([2, 0]), 1.0)
    """

    alpha: float = 0.5
    text_temperature: float = 0.02
    temperature: float = 0.2

    name: ClassVar[str] = "mmtok"
    complexity: ClassVar[str] = "(L + N) N D"
    reference: ClassVar[str] = "Dong et al., ICLR 2026, arXiv 2508.18264"
    guarantee: ClassVar[str] = "1 - 1/e of the best value, and a certificate for every set"
    parity: ClassVar[str] = "the authors' program: picks in order, values"
    program: ClassVar[Program | None] = Program(
        "Ironieser/MMTok", "d1522cd", "k above the selectable tokens repeats token 0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("alpha", self.alpha, zero=True)
        require_positive("text_temperature", self.text_temperature)
        require_positive("temperature", self.temperature)

    @property
    def needs(self) -> frozenset[str]:
        """The tokens before and after the projector, and the words."""
        return frozenset({"features", "states", "text"})

    @property
    def optional(self) -> frozenset[str]:
        """The space shared with text, words that do not count, tokens that may not be picked."""
        return frozenset({"embeds", "text_mask", "selectable"})

    def objective(self, tokens: Tokens) -> FacilityLocation:
        """What is maximised: coverage of the words and of the image."""
        blocks, weights = [], []
        several = isinstance(tokens.text, (list, tuple))
        texts = list(tokens.text) if several else [tokens.text]
        masks = tokens.text_mask if several and tokens.text_mask is not None else None
        for place, text in enumerate(texts):
            mask = tokens.text_mask if not several else None if masks is None else masks[place]
            text = shaped(text, "text", INPUTS["text"].layout, beside=tokens.space)
            check_fit("text", text, tokens.space, 2, no_more=True)
            if mask is not None and np.ndim(mask) > 1 + len(tokens.batch_shape):
                raise ValueError(
                    f"text_mask: expected (..., L) with no more axes than the batch has, "
                    f"got {spell(np.shape(mask))}"
                )
            blocks.append(SoftmaxBlock(text, tokens.space, self.text_temperature))
            weights.append(_shares(text, mask) / len(texts))
        blocks.append(SoftmaxBlock(tokens.states, tokens.states, self.temperature))
        weights.append(self.alpha / tokens.size)
        return FacilityLocation.of_blocks(
            blocks, weights, selectable=tokens.selectable, check_finite=False
        )

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Greedy coverage; see `Method.choose`."""
        return maximize(self.objective(tokens), k)


def _shares(text: Array, mask: Any) -> Array:
    """How much each word (..., L) counts: equally among those that do, 1 together."""
    xp = namespace(text)
    counted = xp.ones(text.shape[:-1], dtype=wide(xp), device=device(text))
    if mask is not None:
        given = like(mask, text) if isinstance(mask, (list, tuple)) else mask
        counted = counted * xp.astype(xp.astype(given, xp.bool), counted.dtype)
    total = xp.sum(counted, axis=-1, keepdims=True)
    return constant(counted / xp.where(total > 0, total, xp.ones_like(total)))
