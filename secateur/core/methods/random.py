"""Random tokens: what every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secateur.core.arrays import index_dtype, like, namespace
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, require_whole
from secateur.core.selection import Selection


@dataclass(frozen=True)
class Random(Method):
    """Tokens drawn at random, all sets of the size equally likely.

    Parameters
    ----------
    keep
        How many tokens to keep: a count or a share.
    seed
        Where the random numbers start. One seed gives the same picks for all images of one
        size, in whatever batch and on whatever backend; for an average, take several seeds.

    Notes
    -----
    O(N) time. The draw is NumPy's, on the host.

    References
    ----------
    None; the baseline of every paper here. Picks are stable as long as NumPy's
    ``default_rng(seed).permutation`` is, which NumPy does not promise across its versions.

    Examples
    --------
    >>> import numpy as np, secateur as sc
    >>> picks = sc.Random(keep=3, seed=1).select(sc.Tokens(features=np.ones((100, 8))))
    >>> len(set(picks.indices.tolist())), picks.count
    (3, array(3))
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    complexity: ClassVar[str] = "N"
    reference: ClassVar[str] = "none: the plainest baseline"
    guarantee: ClassVar[str] = "every token is kept with probability k / N"
    parity: ClassVar[str] = "NumPy's permutation of the same seed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("seed", self.seed)

    @property
    def needs(self) -> frozenset[str]:
        """Nothing but the number of tokens."""
        return frozenset({"features"})

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """The first k of a seeded permutation; see `Method.choose`."""
        picks = np.random.default_rng(self.seed).permutation(tokens.size)[:k]
        everywhere = np.broadcast_to(picks, (*tokens.batch_shape, k))
        dtype = index_dtype(namespace(tokens.features))
        return Selection.of(like(everywhere, tokens.features, dtype=dtype), tokens.size)
