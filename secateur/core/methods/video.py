"""What methods share that see a video whole."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from secateur.core.acts import Cut, Cuts, Layout, Sight, Stay
from secateur.core.arrays import device, index_dtype, namespace, to_numpy
from secateur.core.attention import best
from secateur.core.inputs import Tokens
from secateur.core.methods.base import Method, Over, require_share
from secateur.core.methods.inside import descending_cuts
from secateur.core.selection import Selection, stack


@dataclass(frozen=True)
class VideoMethod(Method):
    """A method that sees a video whole: budgets, places and what is folded cross its frames.

    Without `Tokens.frames` an image is a video of one frame.
    """

    over: Over = field(default="video", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over != "video":
            raise ValueError(f"over: {type(self).__name__} sees a video whole, got {self.over!r}")

    def _require_no_grid(self) -> None:
        """What a frame has, this method knows to be of a frame."""

    def share(self, per_frame: int) -> float:
        """The share to keep of frames of so many tokens, where `keep` may be a count."""
        return self.keep if isinstance(self.keep, float) else min(1.0, self.keep / per_frame)

    def choose(self, tokens: Tokens, k: int) -> Selection:
        """All where all may stay, else by `choose_videos`; see `Method.choose`."""
        xp = namespace(tokens.features)
        if 0 in tokens.batch_shape:
            return Selection.of(xp.zeros((*tokens.batch_shape, 0)), tokens.size)
        if k < tokens.size or self.published:
            return self.choose_videos(tokens, k)
        places = xp.arange(tokens.size, dtype=index_dtype(xp), device=device(tokens.features))
        return Selection.of(
            xp.broadcast_to(places, (*tokens.batch_shape, tokens.size)), tokens.size
        )

    def choose_videos(self, tokens: Tokens, k: int) -> Selection:
        """Choose from a batch of videos; by default one after the other, by `choose_video`."""
        rows = [self.choose_video(each, k) for each in tokens.rows()]
        return stack(rows, tokens.batch_shape)

    def choose_video(self, tokens: Tokens, k: int) -> Selection:
        """Choose from one video, without a batch; for methods that do not give `choose_videos`."""
        raise NotImplementedError


@dataclass(frozen=True)
class TwoStages(VideoMethod, Cuts):
    """A method that may cut once more, inside the language model, what it kept before."""

    inside: float | None = field(default=None, kw_only=True)
    after: float = field(default=0.7, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inside is not None:
            require_share("inside", self.inside, zero=False)
        require_share("after", self.after, zero=False)

    @property
    def cuts_inside(self) -> bool:
        """Where `inside` says how many stay."""
        return self.inside is not None

    @abstractmethod
    def left(self, size: int, share: float) -> int:
        """How many of `size` visual tokens the second cut leaves."""

    def plan(self, layout: Layout) -> tuple[Cut, ...]:
        """One cut of what was kept before; see `Cuts.plan`."""
        if self.inside is None:
            return ()
        entered = sum(int(to_numpy(each.count).sum()) for each in layout.chosen)
        layers = max(round(self.after * layout.depth), layout.earliest)
        keep = max(1, self.left(entered, self.inside))
        return descending_cuts([layers], [keep], layout.depth, entered)

    def decide(self, cut: Cut, sight: Sight) -> Stay:
        """Those that the last token attends to; see `Cuts.decide`."""
        return Stay(best(sight.from_last(), cut.keep))
