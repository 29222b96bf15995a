"""What every family of models says of itself, whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.integrations.encoded import Modality, Positions

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation of the pixels, as CLIP's and SigLIP's image processors have them."""

OBSERVED = frozenset({"features", "grid", "attention", "attention_shallow", "keys"})
"""Inputs that every family here can fill."""

TOWERED = OBSERVED | {"states", "class_state"}
"""Those that a family with a CLIP or SigLIP tower can fill."""


@dataclass(frozen=True)
class Family:
    """A family of models, as far as it is the same in every host.

    Attributes
    ----------
    name
        What people call it.
    offers
        The fields of `Tokens` that an encoder of the family can fill, text left aside.
    when_needed
        Those that it can fill beside for a method that cannot do without; one that can is not
        given them, since its authors' program did without in models like these.
    projects
        Whether the projector takes each token by itself and what it returns is what the language
        model reads, so that a method may hand it states of its own making.
    skips
        Whether its encoder can do without some of a picture's cells: patches meet in attention
        alone, and their positions can be told.
    folds
        Whether tokens may fold inside its encoder: what follows takes each by itself.
    lays_out
        Whether what follows the encoder lays tokens out in a grid, so that folded ones stand in
        the place of one they stand for.
    joins
        What behind the encoder takes several tokens of a grid at once, so that none may fold.
    modalities
        What its prompts may hold.
    positions
        Where kept tokens stand when nobody says.
    normalisation
        Mean and deviation of the pixels where no processor tells.
    """

    name: str
    offers: frozenset[str] = OBSERVED
    when_needed: frozenset[str] = frozenset()
    projects: bool = False
    skips: bool = False
    folds: bool = False
    lays_out: bool = False
    joins: str = ""
    modalities: tuple[Modality, ...] = ("image",)
    positions: Positions = "original"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = CLIP
