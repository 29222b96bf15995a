"""Batches chosen a few images at a time, and what each image of a batch has with it."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import secateur as sc
from secateur.backends import lending
from secateur.core.selection import Selection

IN_PARTS = sorted(name for name, kind in sc.methods().items() if kind.in_parts)
SIDE, WIDTH = 6, 5


def batch(*axes: int, text: str = "own", seed: int = 0) -> dict[str, Any]:
    """Inputs of a batch of images, with a text each, one for all, or two of each."""
    dice = np.random.default_rng(seed)
    n = SIDE * SIDE
    words = dice.normal(size=(*axes, 4, WIDTH))
    whole = dice.normal(size=(*axes, WIDTH))
    if text == "one":
        words, whole = dice.normal(size=(4, WIDTH)), dice.normal(size=WIDTH)
    several = text == "several"
    return {
        "features": dice.normal(size=(*axes, n, WIDTH)),
        "embeds": dice.normal(size=(*axes, n, WIDTH)),
        "text": [words, words[..., ::-1, :].copy()] if several else words,
        "text_global": [whole, -whole] if several else whole,
        "attention": dice.gamma(0.5, size=(*axes, n)),
        "attention_shallow": dice.gamma(0.5, size=(*axes, n)),
        "keys": dice.normal(size=(*axes, n, 4)),
        "states": dice.normal(size=(*axes, n, 3)),
        "class_state": dice.normal(size=(*axes, 3)),
        "selectable": dice.random((*axes, n)) < 0.9,
    }


def of(name: str, given: dict[str, Any], convert: Any = np.asarray) -> sc.Tokens:
    """What a method works from."""
    method = sc.method(name, keep=9)
    wanted = (method.needs | method.optional) & set(given)
    return sc.Tokens(
        grid=(SIDE, SIDE),
        **{
            key: [*map(convert, x)] if isinstance(x, list) else convert(x)
            for key, x in given.items()
            if key in wanted
        },
    )


def assert_equal(one: Selection, other: Selection) -> None:
    for each in fields(Selection):
        x, y = getattr(one, each.name), getattr(other, each.name)
        if each.name == "info":
            assert x.keys() == y.keys()
            x, y = list(x.values()), list(y.values())
        for a, b in zip(
            *((z if isinstance(z, (list, tuple)) else [z]) for z in (x, y)), strict=True
        ):
            if a is None:
                assert b is None
            else:
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=each.name)


@pytest.mark.parametrize("text", ["own", "one", "several"])
@pytest.mark.parametrize("axes", [(7,), (3, 2)])
@pytest.mark.parametrize("name", IN_PARTS)
def test_a_few_images_at_a_time_are_chosen_from_as_all_at_once(
    name: str, axes: tuple[int, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, tokens = sc.method(name, keep=9), of(name, batch(*axes, text=text))
    asked: list[int] = []
    choose = type(method).choose

    def watched(self: sc.Method, part: sc.Tokens, k: int) -> Selection:
        asked.append(int(np.prod(part.batch_shape)))
        return choose(self, part, k)

    monkeypatch.setattr(type(method), "choose", watched)
    whole = method.select(tokens)
    assert asked == [int(np.prod(axes))]
    asked.clear()
    monkeypatch.setattr(lending, "PAIRS", 1)
    monkeypatch.setattr(lending, "hands", lambda work: 1)
    parts = method.select(tokens)
    assert asked == [2] * (sum(asked) // 2) + [1] * (sum(asked) % 2)
    assert sum(asked) == np.prod(axes)
    assert_equal(whole, parts)


@pytest.mark.parametrize("name", IN_PARTS)
def test_so_are_tensors_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    method, tokens = sc.method(name, keep=9), of(name, batch(5), torch.from_numpy)
    whole = method.select(tokens)
    monkeypatch.setattr(lending, "PAIRS", 1)
    monkeypatch.setattr(lending, "hands", lambda work: 1)
    parts = method.select(tokens)
    assert isinstance(parts.indices, torch.Tensor)
    assert_equal(whole, parts)


def test_a_large_batch_takes_no_more_memory_than_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On many cores more images are looked at together.
    monkeypatch.setattr(lending, "hands", lambda work: 1)
    dice = np.random.default_rng(0)
    x = dice.normal(size=(48, 400, 16)).astype(np.float32)
    attention = dice.random((48, 400))
    method = sc.PruneSID(keep=40)
    peaks = []
    for images in (24, 48):
        tokens = sc.Tokens(features=x[:images], attention=attention[:images])
        method.select(tokens)
        tracemalloc.start()
        method.select(tokens)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # All pairs of an image take 1.3 MB, of all 48 images 61 MB, several times.
    assert peaks[1] < 1.2 * peaks[0]


def test_another_way_to_choose_gets_the_whole_batch_unless_it_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, ...]] = []

    class Mine(sc.FLoC):
        def choose(self, tokens: sc.Tokens, k: int) -> Selection:
            seen.append(tokens.batch_shape)
            return super().choose(tokens, k)

    class InParts(Mine):
        in_parts = True

    monkeypatch.setattr(lending, "PAIRS", 1)
    monkeypatch.setattr(lending, "hands", lambda work: 1)
    tokens = of("floc", batch(7))
    Mine(keep=9).select(tokens)
    assert seen == [(7,)]
    seen.clear()
    InParts(keep=9).select(tokens)
    assert seen == [(2,), (2,), (2,), (1,)]


@pytest.mark.parametrize("text", ["own", "one", "several"])
@pytest.mark.parametrize("over", ["frame", "change"])
@pytest.mark.parametrize("name", ["eadp", "cdpruner"])
def test_videos_of_a_batch_have_a_text_each(name: str, over: str, text: str) -> None:
    videos, frames = 3, 4
    dice = np.random.default_rng(0)
    given = batch(videos, text=text)
    x = dice.normal(size=(videos, frames * SIDE * SIDE, WIDTH))
    method = sc.method(name, keep=5, over=over)
    words = {key: given[key] for key in ("text", "text_global") if key in method.needs}
    chosen = method.select(sc.Tokens(features=x, frames=frames, **words))

    def own(words: Any, video: int) -> Any:
        if text == "one":
            return words
        return [each[video] for each in words] if text == "several" else words[video]

    for video in range(videos):
        alone = method.select(
            sc.Tokens(
                features=x[video],
                frames=frames,
                **{key: own(each, video) for key, each in words.items()},
            )
        )
        np.testing.assert_array_equal(chosen.indices[video], alone.indices)


def test_rows_have_their_own_texts_or_the_shared_one() -> None:
    given = batch(2, 3)
    tokens = sc.Tokens(**given)
    for (i, j), row in zip(np.ndindex(2, 3), tokens.rows(), strict=True):
        for key, x in given.items():
            np.testing.assert_array_equal(getattr(row, key), x[i, j], err_msg=key)
    shared = sc.Tokens(features=given["features"], text=given["text"][0, 0])
    assert all(row.text is shared.text for row in shared.rows())
    # One for each place of the last axis.
    last = sc.Tokens(features=given["features"], text=given["text"][0])
    for (_, j), row in zip(np.ndindex(2, 3), last.rows(), strict=True):
        np.testing.assert_array_equal(row.text, given["text"][0, j])


def test_a_mixture_of_methods_that_read_gets_the_text_of_each_image() -> None:
    given = batch(3)
    method = sc.Mixture(keep=9, attention=sc.EADP(), diversity=sc.DivPrune(), mean_erank=3.0)
    wanted = ("features", "text", "text_global", "attention")
    chosen = method.select(sc.Tokens(**{key: given[key] for key in wanted}))
    for row in range(3):
        alone = method.select(sc.Tokens(**{key: given[key][row] for key in wanted}))
        np.testing.assert_array_equal(chosen.indices[row], alone.indices)
