"""What a method can do, and where: the small interfaces that a host asks for by `isinstance`.

Every `Method` chooses from encoded tokens, unless it says `prunes_before = False`. What it can do
beside that, it says by deriving from an act: it may choose from the parts of an image or a video
together (`ChoosesParts`), hand the projector states of its own making (`Makes`), make the picture
smaller (`Shrinks`), drop cells of it that are then never encoded (`Skips`), fold tokens inside the
encoder (`Folds`), drop and fold them between layers of the language model (`Cuts`), or hide some
from the newest token at each step of decoding (`Forgets`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeGuard

import numpy as np

from secateur.core.arrays import Array, device, like, namespace, to_numpy
from secateur.core.attention import real, text_attention
from secateur.core.inputs import Tokens
from secateur.core.merging import Merged
from secateur.core.selection import Selection


@dataclass(frozen=True)
class Cut:
    """One dropping of visual tokens.

    Attributes
    ----------
    after
        How many decoder layers have run: 1 .. depth - 1. Tokens are scored with the queries and
        keys of the layer of index `after` - 1.
    keep
        How many visual tokens of the prompt remain, all its images together. An upper limit
        where the method counts by itself.
    """

    after: int
    keep: int


@dataclass(frozen=True)
class Layout:
    """What a method may know of a prompt before its layers run.

    Attributes
    ----------
    depth
        Decoder layers of the language model.
    images
        Visual tokens of each image or video of the prompt before any pruning.
    earliest
        The first allowed `Cut.after`: 1, or the last layer that adds visual features.
    chosen
        What the method itself chose before the language model, a selection for each part of
        each image; empty where it chose nothing.
    family
        What the family of models is called, for programs that differ by model.
    """

    depth: int
    images: tuple[int, ...]
    earliest: int = 1
    chosen: tuple[Selection, ...] = ()
    family: str = ""

    @property
    def size(self) -> int:
        """Visual tokens of the prompt before any pruning, all its images together."""
        return sum(self.images)


@dataclass(frozen=True, eq=False)
class Sight:
    """What a method sees of one prompt at a cut; T is the current length.

    Attributes
    ----------
    length
        T.
    visual
        Ascending positions (N,) of the visual tokens that are left.
    text
        Ascending positions (L,) of the instruction's tokens.
    mask
        True (T,) at real tokens; None when all are.
    image
        Which image or video (N,) of the prompt each visual token belongs to; -1 for one that a
        cut has made.
    place
        The number (N,) of each among all visual tokens of the prompt before any pruning, part
        after part as `Layout.chosen` lists them; -1 for one that a cut has made.
    layout
        The prompt's.
    prepared
        What `Cuts.prepare` returned.
    ask
        Queries (H, T, d) that the layer which has just run makes of any states (T, C), without
        the norm before it, rotated.
    queries, keys, values
        (H, T, d), (G, T, d) and (G, T, d) of the layer that `Cuts.looks` names, rotated; H is a
        multiple of G. None where the method did not ask.
    entered
        Hidden states (T, C) that entered the layer which has just run.
    hidden
        Hidden states (T, C) that the next layer is about to read.
    embeddings
        Input embeddings (T, C) of the prompt's tokens, before any layer runs.
    rotary
        Cosine and sine (T, d) of the tokens' positions.
    """

    length: int
    visual: Array
    text: Array
    mask: Array | None = None
    image: Array | None = None
    place: Array | None = None
    layout: Layout | None = None
    prepared: Any = None
    ask: Callable[[Array], Array] | None = None
    queries: Array | None = None
    keys: Array | None = None
    values: Array | None = None
    entered: Array | None = None
    hidden: Array | None = None
    embeddings: Array | None = None
    rotary: tuple[Array, Array] | None = None

    def told(self, name: str) -> np.ndarray[Any, Any]:
        """What `Selection.info` says of each visual token that is left, on the host.

        `name` is of an entry (..., n) with one number for every token of a part.
        """
        chosen = () if self.layout is None else self.layout.chosen
        if not chosen or self.place is None:
            raise ValueError(f"sight: nothing was chosen before the language model to tell {name}")
        # Of a video's frames, each told by itself, one after the other.
        told: np.ndarray[Any, Any] = np.concatenate(
            [to_numpy(x.info[name]).ravel() for x in chosen]
        )
        return np.asarray(told[to_numpy(self.place)])

    def attention(self, asking: Array, queries: Array | None = None) -> Array:
        """What the visual tokens (N,) receive from the tokens at `asking`, summed over those.

        By the layer's own queries unless others (H, T, d) are given.
        """
        return text_attention(
            self.queries if queries is None else queries,
            self.keys,
            visual=self.visual,
            text=asking,
            mask=self.mask,
        )

    def from_last(self) -> Array:
        """What the visual tokens (N,) receive from the prompt's last real token."""
        xp, visual = namespace(self.visual), self.visual
        everyone = xp.arange(self.length, dtype=visual.dtype, device=device(visual))
        return self.attention(real(everyone, self.mask)[-1:])

    def others(self, skip: int = 0) -> Array:
        """Ascending positions of the real tokens that are not visual, but for the first `skip`."""
        there = np.ones(self.length, dtype=bool)
        if self.mask is not None:
            there &= to_numpy(self.mask)
        there[np.flatnonzero(there)[:skip]] = False
        there[to_numpy(self.visual)] = False
        return like(np.flatnonzero(there), self.visual)

    def behind(self) -> Array:
        """Ascending positions of the real tokens behind the last visual one."""
        rest = to_numpy(self.others())
        return like(rest[rest > int(to_numpy(self.visual)[-1])], self.visual)


@dataclass(frozen=True, eq=False)
class Stay:
    """What stays at a cut.

    Attributes
    ----------
    kept
        Ascending places (K,) within `Sight.visual` of the tokens that stay.
    states
        Their hidden states (K, C) where something was folded into them; None where they stay as
        they are.
    made
        Hidden states (M, C) of tokens that the cut makes anew, placed behind the last visual
        token that stays.
    """

    kept: Array
    states: Array | None = None
    made: Array | None = None


Look = Literal["queries", "keys", "values", "entered", "hidden", "embeddings", "rotary", "ask"]


class Cuts(ABC):
    """Drops and folds visual tokens between layers of the language model."""

    looks: ClassVar[frozenset[Look]] = frozenset({"queries", "keys"})
    """What of `Sight` it wants."""

    @property
    def cuts_inside(self) -> bool:
        """Whether it does so with these parameters."""
        return True

    @property
    def looks_ahead(self) -> bool:
        """Whether queries and keys are those of the layer that comes next, worked out ahead."""
        return False

    @property
    def shortens_caches(self) -> bool:
        """Whether layers that ran already forget what a cut drops, so that all cache alike."""
        return True

    @property
    def renumbers(self) -> bool:
        """Whether positions start again at 0 after every cut, for the layers that follow."""
        return False

    def renumbers_after(self, cut: Cut, layout: Layout) -> bool:
        """Whether they do after one cut; those that `renumbers` says for all need not say it."""
        return self.renumbers

    @abstractmethod
    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """When to drop, and how many visual tokens remain.

        Returns
        -------
        tuple of Cut
            Ascending in `after`, descending in `keep`; cuts that drop nothing are left out.
        """

    def prepare(self, sight: Sight) -> Any:
        """What all cuts of a prompt are to know, from its embeddings, before any layer runs.

        Called where `looks` has "embeddings"; handed on as `Sight.prepared`.
        """
        return None

    @abstractmethod
    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Which visual tokens stay at a cut of `plan`."""


class Forgets(ABC):
    """Hides visual tokens from the newest one, in the later layers, at each step of decoding.

    Nothing leaves the cache: what is hidden at one step may be seen at the next.
    """

    @property
    def forgets(self) -> bool:
        """Whether it does so with these parameters."""
        return True

    @property
    @abstractmethod
    def forgets_after(self) -> int:
        """How many layers see everything; the last of them tells the attention."""

    @abstractmethod
    def in_sight(self, attention: Array, before: Array | None) -> Array:
        """Which visual tokens the newest token sees in the layers that follow.

        Parameters
        ----------
        attention
            What it pays the visual tokens (V,) of its prompt, mean over the heads.
        before
            The same of the token before; None at the first step.

        Returns
        -------
        Array
            True (V,) at what it sees.
        """


def forgets(method: object) -> TypeGuard[Forgets]:
    """Whether a method hides tokens while decoding, as it is set."""
    return isinstance(method, Forgets) and method.forgets


def acts_inside(method: object) -> TypeGuard[Cuts]:
    """Whether a method drops or folds tokens inside the language model, as it is set."""
    return isinstance(method, Cuts) and method.cuts_inside


class Makes(ABC):
    """Hands the projector states of its own making, in place of those of chosen tokens."""

    @property
    def makes(self) -> bool:
        """Whether it does so with these parameters."""
        return True

    @abstractmethod
    def make(self, tokens: Tokens, chosen: Selection) -> Array:
        """What goes on of one image, of which not everything is kept.

        Parameters
        ----------
        tokens
            What it chose from, with `states`, and `class_state` where the encoder has one.
        chosen
            What it chose.

        Returns
        -------
        Array
            States (M, C) in the order in which the language model shall read them; M may be
            more than was chosen, and at most N.
        """


class ChoosesParts(ABC):
    """Chooses from the crops of an image or the frames of a video, all seen at once."""

    @property
    def alone(self) -> Self:
        """The method for pictures that are not cut, each by itself; itself unless it says more."""
        return self

    @property
    def sees_padding(self) -> bool:
        """Whether padding of crops, which a model may cut off, is chosen from like the rest.

        What is chosen of it counts in the budget and does not go on.
        """
        return False

    @abstractmethod
    def select_parts(self, parts: Sequence[Tokens], pictures: int) -> list[Selection]:
        """Choose from parts that share a budget.

        Parameters
        ----------
        parts
            One `Tokens` a part, the overview of an image first. Grids may differ.
        pictures
            How many times `keep` they share, where `keep` is a count.
        """


class Skips(ABC):
    """Chooses from the picture alone, so that an encoder need not read what it drops."""

    @property
    @abstractmethod
    def skips(self) -> bool | None:
        """Whether what it drops stays out of the encoder; None for where the model can do that."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What a method sees of pictures in a layer of the encoder; t is their current length.

    Attributes
    ----------
    number
        The layer's, from 0.
    depth
        How many layers there are up to the one whose states become features.
    grid
        (h, w) of a picture's tokens before any folding.
    class_token
        Whether token 0 is a class token, which has to stay where it is.
    states
        (P, t, C), as the layer's attention left them or, for `Folds.behind`, the layer.
    keys
        (P, t, d) of its attention, averaged over heads.
    sizes
        How many tokens (P, t) each stands for.
    """

    number: int
    depth: int
    grid: tuple[int, int]
    class_token: bool
    states: Array
    keys: Array
    sizes: Array


class Folds(ABC):
    """Folds tokens inside the encoder, each picture's by themselves."""

    behind: ClassVar[bool] = True
    """Whether it folds what a layer returns; else what goes from its attention to its MLP."""
    together: ClassVar[bool] = False
    """Whether pictures of one size are left with as many tokens, and may fold as one batch."""

    @property
    def folds(self) -> bool:
        """Whether it does so with these parameters."""
        return True

    @property
    def proportional(self) -> bool:
        """Whether later layers attend to a token as to as many as it stands for."""
        return False

    @property
    def in_place(self) -> bool:
        """Whether a token stands in the prompt where the first of those stood that it stands for.

        Else tokens stand one after the other, in the encoder's order.
        """
        return True

    @abstractmethod
    def fold(self, layer: Layer) -> Merged | None:
        """The tokens (P, t', C) that are left of those of a layer; None for all as they are."""


class Shrinks(ABC):
    """Makes the picture itself smaller, before it is encoded."""

    @abstractmethod
    def shrunken_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The smaller picture's tokens (h', w'), of a picture with `grid` tokens (h, w)."""

    @abstractmethod
    def shrink(self, pixels: Array, grid: tuple[int, int]) -> Array:
        """The smaller pictures (..., H', W', 3) of pictures (..., H, W, 3)."""
