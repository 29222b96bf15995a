"""What all methods share: parameters that can be printed and stored, inputs that are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, dataclass, field, fields
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, Self, overload

import numpy as np

from secateur.core.arrays import (
    Array,
    checked,
    namespace,
    resolve_keep,
    shape_of,
    shaped,
    to_numpy,
)
from secateur.core.dispatch import backend as backend_choice
from secateur.core.dispatch import eager, images_at_once, lender, whole
from secateur.core.frames import allocate_in_time, joined
from secateur.core.inputs import INPUTS, Request, Tokens, arrays_of, taken_elsewhere
from secateur.core.parameters import check_types, typed
from secateur.core.parts import chosen_in_parts
from secateur.core.selection import Selection, stack, taken_back

CountedFrom = Literal["size", "pixels", "features"]
Reading = Literal["words", "window"]
Over = Literal["frame", "change", "video"]


class Program(NamedTuple):
    """A program that the authors of a method published."""

    repository: str
    """owner/name."""
    commit: str
    notes: str = ""
    """Which file or version of it, where there are several; faults that no selection can say."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to choose visual tokens: a frozen record of its parameters.

    A method of your own is a frozen dataclass that derives from this one, gives `name`,
    `complexity` and `reference`, says in `needs` what it works from, and chooses in `choose`.

    Parameters
    ----------
    keep
        How many tokens to keep of each image or frame: a count (int), or a share of them (float
        in (0, 1]). A count at or above the number of tokens keeps all. A video of T frames has
        T times that to spend, however it is spent.
    """

    keep: int | float = 64
    published: bool = field(default=False, kw_only=True)
    """Whether it does what its authors' program does, to the letter; see `secateur.published`."""

    over: Over = field(default="frame", kw_only=True)
    """How a method for images takes a video (`Tokens.frames`). ``"frame"``: every frame by itself,
    with the same budget. ``"change"``: the same with `secateur.allocate_in_time`'s budgets, more
    for frames unlike those before. ``"video"``: all frames are one pool of tokens."""

    name: ClassVar[str]
    """What `secateur.method` calls it."""
    complexity: ClassVar[str]
    """Time for one image of N tokens, for the table of methods."""
    reference: ClassVar[str]
    """Authors, venue, year, arXiv number."""
    guarantee: ClassVar[str] = "none"
    """What is certain about the chosen set, for the table of methods."""
    parity: ClassVar[str] = "none"
    """What it was checked against, for the table of methods."""
    prunes_before: ClassVar[bool] = True
    """Whether `select` chooses before the language model; False for methods that act inside."""
    in_parts: ClassVar[bool] = False
    """Whether a CPU chooses from a large batch a few images at a time, which do not matter to each
    other, as what is made of all pairs of tokens is large."""

    program: ClassVar[Program | None] = None
    """The authors' program, where there is one."""
    as_published: ClassVar[Mapping[str, Any]] = {}
    """Parameters that the authors' program sets otherwise than our defaults."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Method.__repr__  # type: ignore[method-assign]
        if "choose" in cls.__dict__ and "in_parts" not in cls.__dict__:
            cls.in_parts = False  # another way to choose may weigh images against each other

    def __post_init__(self) -> None:
        resolve_keep(self.keep, 1)
        check_types(self)

    def __repr__(self) -> str:
        told = (f"{item.name}={getattr(self, item.name)!r}" for item in self._told())
        return f"{type(self).__name__}({', '.join(told)})"

    def _told(self) -> list[Field[Any]]:
        """The parameters to print; those of every method only where they say more."""
        common = ("published", "over")
        return [
            item
            for item in fields(self)
            if item.name not in common or getattr(self, item.name) != item.default
        ]

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """The fields of `Tokens` it cannot do without, with these parameters."""

    @property
    def optional(self) -> frozenset[str]:
        """The fields of `Tokens` it also works from where they are given."""
        return frozenset()

    @property
    def needs_in_model(self) -> frozenset[str]:
        """The fields of `Tokens` without which it does not do in a model what it should."""
        return self.needs

    def check_attached(self) -> None:
        """Refuse parameters that mean nothing inside a model; called when it is attached."""

    @property
    def looks_deep(self) -> bool:
        """Whether its features are joined by those that a model adds in its first layers.

        Qwen3-VL has such, three beside those of the input.
        """
        return False

    @property
    def reads(self) -> Reading:
        """How a text encoder is given the instruction.

        ``"words"``: sentences that fit its context, of which the words count. ``"window"``: as
        the authors' programs do, whole windows of which every position counts.
        """
        return "words"

    @abstractmethod
    def choose(self, tokens: Tokens, k: int) -> Selection:
        """Choose k of the tokens of each image of a batch.

        Called by `select`: what is in `needs` is there, everything in `needs` and `optional`
        is checked, and 1 <= k <= N.
        """

    def weigh(self, tokens: Tokens) -> Array | None:
        """What each token (..., N) counts before anything is chosen: `Selection.scores`.

        Crops of an image share a budget by its sums; by their sizes where it is None, as here,
        or negative somewhere. Called with what `choose` is called with.
        """
        return None

    @property
    def requests(self) -> Mapping[str, Request]:
        """What to observe in a model for the inputs it needs, where `REQUESTS` would be wrong."""
        return {}

    @property
    def positions(self) -> Literal["original", "compact"] | None:
        """How an attachment numbers kept tokens that is not told: as the authors' program does.

        None leaves it to the model's family. Every program known to choose before the language
        model hands over embeddings without positions, so that these count 0, 1, ...
        """
        return "compact" if self.published and self.prunes_before else None

    @property
    def counted_from(self) -> CountedFrom:
        """What its count comes from: known beforehand (``"size"``), or only from what it sees.

        ``"size"``: `budget` says how many of how many tokens. ``"pixels"``: the image decides.
        ``"features"``: only the encoded image does.
        """
        return "size"

    @property
    def parts_counted_from(self) -> CountedFrom:
        """The same of the crops of an image, which share a budget: `budget_of_parts`."""
        return self.counted_from

    def budget(self, size: int, frames: int = 1) -> int:
        """How many of `size` tokens of an image, or of `frames`, it keeps; at most, but for the
        rounding of parts, where what it sees decides.
        """
        if self.over == "video" and isinstance(self.keep, float):
            return resolve_keep(self.keep, size)
        return frames * resolve_keep(self.keep, size // frames)

    def budget_of_parts(self, size: int, parts: int, pictures: int) -> int:
        """How many of `size` tokens the parts of an image keep that was cut into `pictures`.

        `pictures` times `keep`, where that is a count; each part keeps at least one.
        """
        if isinstance(self.keep, float):
            return max(self.budget(size), parts)
        return max(min(int(self.keep) * pictures, size), parts)

    @overload
    def select(
        self, tokens: Tokens, *, check_finite: bool = ..., backend: str | None = ...
    ) -> Selection: ...
    @overload
    def select(
        self, tokens: Sequence[Tokens], *, check_finite: bool = ..., backend: str | None = ...
    ) -> list[Selection]: ...

    @eager
    @typed
    def select(
        self,
        tokens: Tokens | Sequence[Tokens],
        *,
        check_finite: bool = True,
        backend: str | None = None,
    ) -> Selection | list[Selection]:
        """Choose tokens.

        Parameters
        ----------
        tokens
            The tokens of an image, of a batch of images (leading axes), or a list of `Tokens`
            for images of different sizes.
        check_finite
            Whether to refuse NaN and infinity in what the method works from.
        backend
            Overrides who computes, as `secateur.backend` does.

        Returns
        -------
        Selection or list of Selection
            One for each `Tokens` given.

        Raises
        ------
        MissingInputError
            When an input in `needs` is absent.
        """
        one = isinstance(tokens, Tokens)
        images = [tokens] if isinstance(tokens, Tokens) else list(tokens)
        for each in images:
            if not isinstance(each, Tokens):
                raise ValueError(f"tokens: expected Tokens, got {type(each).__name__}")
            each.require(type(self).__name__, *sorted(self.needs))
        with nullcontext() if backend is None else backend_choice(backend), _worked_on(images):
            for place, each in enumerate(images):
                self._check(each, check_finite)
                images[place] = each.without_gradients()
            driver = self._lender(images)
            if driver is not None:
                images = [taken_elsewhere(each, driver.lend) for each in images]
            chosen = self._choose_in_time(images)
            if check_finite:
                self._refuse_lost(chosen)
            if driver is not None:
                chosen = [taken_back(each, driver.take_back) for each in chosen]
        return chosen[0] if one else chosen

    def _lender(self, images: Sequence[Tokens]) -> ModuleType | None:
        """The driver that lends all arrays of these to another library, where we may do that.

        Another one's method, or one within ours, may call his library by its name.
        """
        if not images or not self._is_ours():
            return None
        driver = lender(images[0].sample)
        if driver is None:
            return None
        given = (x for each in images for _, x in arrays_of(each))
        listed = (x if isinstance(x, (list, tuple)) else [x] for x in given)
        return driver if all(driver.lends(x) for each in listed for x in each) else None

    def _is_ours(self) -> bool:
        """Whether this method and all that it holds come with the library."""
        held = (getattr(self, each.name) for each in fields(self))
        return type(self).__module__.startswith("secateur.core.") and all(
            each._is_ours() for each in held if isinstance(each, Method)
        )

    def _refuse_lost(self, chosen: Sequence[Selection]) -> None:
        """Refuse scores that overflowed, though every number that they are made of is finite."""
        for scores in (each.scores for each in chosen if each.scores is not None):
            xp = namespace(scores)
            if not bool(xp.all(xp.isfinite(scores))):
                raise ValueError(
                    f"{', '.join(sorted(self.needs))}: numbers too large for "
                    f"{type(self).__name__} to compute scores of; scale them down"
                )

    def choose_each(self, images: Sequence[Tokens]) -> list[Selection]:
        """Choose from each `Tokens` of a list; a method may weigh them against each other."""
        return [self._choose_in_parts(each, self.budget(each.size, each.times)) for each in images]

    def _choose_in_parts(self, tokens: Tokens, k: int) -> Selection:
        """`choose`, of a large batch a few images at a time where that is `in_parts`."""
        if self.in_parts and tokens.batch_shape:
            images = images_at_once(tokens.sample)
            if images is not None and images < math.prod(tokens.batch_shape):
                return chosen_in_parts(lambda part: self.choose(part, k), tokens, images)
        return self.choose(tokens, k)

    def _choose_in_time(self, images: Sequence[Tokens]) -> list[Selection]:
        """Choose from images, and from videos as `over` says."""
        if all(each.frames is None for each in images):
            return self.choose_each(images)
        if self.over == "video":
            self._require_no_grid()
            return self.choose_each(images)
        if self.over == "frame":
            chosen = self.choose_each([each.each_frame() for each in images])
            return [
                one if each.frames is None else joined(one)
                for one, each in zip(chosen, images, strict=True)
            ]
        return [
            self.choose_each([each])[0] if each.frames is None else self._choose_by_change(each)
            for each in images
        ]

    def _require_no_grid(self) -> None:
        geometry = sorted(self.needs & {"grid", "pixels"})
        if geometry:
            raise ValueError(
                f"over: {type(self).__name__} works from {geometry[0]}, which frames have and a "
                "pool of their tokens has not; use 'frame' or 'change'"
            )

    def _choose_by_change(self, tokens: Tokens) -> Selection:
        """Frame by frame, with budgets by how much each differs from those before."""
        if tokens.features is None:
            raise ValueError("over: 'change' weighs frames by their features, and there are none")
        total = self.budget(tokens.size, tokens.times)
        budgets = to_numpy(allocate_in_time(tokens.features, tokens.times, total))
        frames, batch = tokens.each_frame(), tokens.batch_shape
        own = [
            self.choose(frame, int(k))
            for frame, k in zip(frames.rows(), budgets.ravel(), strict=True)
        ]
        if not own:
            return joined(self.choose(frames, 1))
        return joined(stack(own, (*batch, tokens.times)))

    def _check(self, tokens: Tokens, check_finite: bool) -> None:
        """Refuse inputs of another kind, library or shape, and numbers that are none."""
        arrays = []
        for name in sorted(self.needs | self.optional | {"features"}):
            row, given = INPUTS[name], getattr(tokens, name)
            if given is None or not row.numbers:
                continue
            several = isinstance(given, (list, tuple)) and row.axis == "text"
            if several and not given:
                raise ValueError(f"{name}: expected at least one, got an empty list")
            for place, x in enumerate(given if several else [given]):
                if name == "text":
                    x = _without_masked(shaped(x, name, row.layout), tokens, place, several)
                if not check_finite:
                    x = shaped(x, name, row.layout)
                elif name == "pixels":
                    x = _checked_pixels(x)
                else:
                    x = checked(x, name, row.layout, non_negative=row.non_negative)
                arrays.append(x)
        namespace(*arrays)

    def to_dict(self) -> dict[str, Any]:
        """The method as plain values that JSON can hold; `Method.from_dict` reads them."""
        stored: dict[str, Any] = {"method": self.name}
        for item in fields(self):
            stored[item.name] = _plain(getattr(self, item.name))
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """The method that `to_dict` wrote; parameters it does not mention take their defaults.

        >>> import secateur as sc
        >>> sc.Method.from_dict({"method": "eadp", "keep": 32}) == sc.EADP(keep=32)
        True
        """
        from secateur.core.methods import kind_of

        if not isinstance(stored, Mapping):
            raise ValueError(f"method: expected a record with the key 'method', got {stored!r}")
        name = stored.get("method")
        kind = kind_of(name)
        if not issubclass(kind, cls):
            raise ValueError(f"method: {name!r} is no {cls.__name__}")
        parameters = {item.name for item in fields(kind)}
        unknown = sorted(map(str, stored.keys() - parameters - {"method"}))
        if unknown:
            raise ValueError(
                f"{name}: no parameter {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(sorted(parameters))}"
            )
        return kind(**{key: _rich(item) for key, item in stored.items() if key != "method"})


def _worked_on(images: Sequence[Tokens]) -> AbstractContextManager[None]:
    """Around a choice from these."""
    work = sum(math.prod(shape_of(each.sample)) * each.size for each in images)
    return whole(images[0].sample, work) if images else nullcontext()


def _plain(x: Any) -> Any:
    if hasattr(x, "to_dict"):
        return x.to_dict()
    if isinstance(x, (tuple, list)):
        return [_plain(each) for each in x]
    return x.item() if isinstance(x, np.generic) else x


def _rich(x: Any) -> Any:
    """Nested methods become methods, lists tuples; other records are read by their owner."""
    if isinstance(x, Mapping) and "method" in x:
        return Method.from_dict(x)
    if isinstance(x, list):
        return tuple(_rich(each) for each in x)
    return x


def _checked_pixels(pixels: Any) -> Array:
    pixels = shaped(pixels, "pixels", INPUTS["pixels"].layout)
    xp = namespace(pixels)
    if 0 in shape_of(pixels) or xp.isdtype(pixels.dtype, "unsigned integer"):
        return pixels
    pixels = checked(pixels, "pixels", INPUTS["pixels"].layout)
    low, high = float(xp.min(pixels)), float(xp.max(pixels))
    if low < 0 or high > 255:
        raise ValueError(
            f"pixels: expected the image before normalisation, 0..255, got {low:g}..{high:g}"
        )
    return pixels


def _without_masked(text: Array, tokens: Tokens, place: int, several: bool) -> Array:
    """Text tokens with zeros where the mask says that they do not count, whatever they held."""
    mask = tokens.text_mask
    if mask is not None and several:
        if not isinstance(mask, (list, tuple)) or len(mask) != len(tokens.text):
            raise ValueError(
                f"text_mask: expected a list with one entry for each of the {len(tokens.text)} "
                "texts"
            )
        mask = mask[place]
    if mask is None:
        return text
    mask = shaped(mask, "text_mask", INPUTS["text_mask"].layout, beside=text)
    xp = namespace(mask, text)
    if shape_of(mask)[-1] != shape_of(text)[-2]:
        raise ValueError(f"text_mask: {mask.shape[-1]} places for {text.shape[-2]} text tokens")
    return xp.where(xp.astype(mask, xp.bool)[..., None], text, xp.zeros_like(text))


def require_share(name: str, value: float, *, zero: bool = True) -> None:
    """Refuse a parameter outside [0, 1], or outside (0, 1] when zero makes no sense."""
    if not (0.0 <= value <= 1.0) or (value == 0.0 and not zero):
        raise ValueError(f"{name}: expected a share in {'[' if zero else '('}0, 1], got {value!r}")


def require_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a parameter that is not a positive finite number (or zero, where allowed)."""
    if not (value > 0 or (zero and value == 0)) or not math.isfinite(value):
        least = "of at least 0" if zero else "above 0"
        raise ValueError(f"{name}: expected a finite number {least}, got {value!r}")


def require_some(name: str, value: Any) -> None:
    """Refuse what is neither a count of at least 1 nor a share above 0."""
    if isinstance(value, float):
        require_share(name, value, zero=False)
    else:
        require_whole(name, value, least=1)


def require_whole(name: str, value: int, least: int = 0) -> None:
    """Refuse a parameter that is not a whole number of at least `least`."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a parameter that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")
