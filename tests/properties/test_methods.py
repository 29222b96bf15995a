"""What holds for every registered method, whatever it is given."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import secateur as sc
from secateur.core.acts import ChoosesParts, Cuts
from secateur.core.similarity import unit

PATCH = 4
PARAMETERS = {
    "agilepruner": {"mean_erank": 3.0},
    "erase": {"patch": PATCH},
}
TRAINED = ["visionselector"]
"""Those that work with weights for features of one width; they have tests of their own."""
CHOOSING = sorted(
    name for name, kind in sc.methods().items() if kind.prunes_before and name not in TRAINED
)
INSIDE_ONLY = sorted(
    name for name, kind in sc.methods().items() if not kind.prunes_before and issubclass(kind, Cuts)
)
BLIND_TO_POSITION = [
    "agilepruner",
    "cdpruner",
    "dart",
    "divprune",
    "eadp",
    "fps",
    "topk",
    "vispruner",
]
KEEP_A_FRAME = ("evs", "dycoke")
"""Methods for videos whose first frame, and so an image, stays whole."""
ROUND_OTHERWISE = ("flashvid", "holitom", "vidcom2")
"""Methods for videos that do not round a share of a frame down."""
NUMBERS = (
    *("features", "embeds", "text", "text_global", "attention", "attention_shallow", "keys"),
    *("states", "importance"),
)


def method_of(name: str, keep: int | float) -> sc.Method:
    return sc.method(name, keep=keep, **PARAMETERS.get(name, {}))


@st.composite
def images(draw: st.DrawFn, *, smooth: bool = False) -> dict:
    """Everything a method may ask for, as NumPy arrays; coarse ones are full of ties."""
    h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    width, words = draw(st.integers(2, 9)), draw(st.integers(1, 12))
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = h * w
    image = {
        "features": dice.normal(size=(n, width)),
        "embeds": dice.normal(size=(n, width)),
        "text": dice.normal(size=(words, width)),
        "text_global": dice.normal(size=width),
        "attention": dice.gamma(0.5, size=n),
        "attention_shallow": dice.gamma(0.5, size=n),
        "keys": dice.normal(size=(n, 4)),
        "states": dice.normal(size=(n, 3)),
        "importance": dice.gamma(0.5, size=n),
        "pixels": dice.integers(0, 256, size=(h * PATCH, w * PATCH, 3)).astype(np.uint8),
        "grid": (h, w),
    }
    if not smooth and draw(st.booleans()):
        for name in ("features", "embeds", "attention", "attention_shallow", "keys", "states"):
            image[name] = np.round(image[name])
        image["pixels"] //= 128
    return image


def tokens_of(image: dict, convert=np.asarray, dtype=np.float64) -> sc.Tokens:
    return sc.Tokens(
        **{
            name: convert(x.astype(dtype)) if name in NUMBERS else x
            for name, x in image.items()
            if name not in ("grid", "pixels")
        },
        pixels=convert(image["pixels"]),
        grid=image["grid"],
    )


def expected_count(method: sc.Method, image: dict, k: int) -> int:
    if method.name in KEEP_A_FRAME:
        return len(image["features"])
    if isinstance(method, sc.PixelPrune):  # its keep is a limit
        return min(k, int(sc.PixelPrune().select(tokens_of(image)).count))
    # Of one the keep is an average over layers, of the other what its last cut leaves.
    if isinstance(method, (sc.ViTCoP, sc.MustDrop)):
        return method.budget(len(image["features"]))
    if not isinstance(method, sc.ERASE):
        return k
    entropies = np.sort(sc.patch_entropy(image["pixels"], PATCH))
    middle = entropies[(len(entropies) - 1) // 2]
    level = next((i for i, t in enumerate(method.thresholds) if middle > t), -1)
    return max(k, int(len(entropies) * method.ratios[level] + 1e-9))


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(), data=st.data())
@settings(max_examples=30)
def test_k_distinct_tokens_the_same_every_time(name, image, data):
    n = len(image["features"])
    k = data.draw(st.integers(1, n), label="k")
    method, tokens = method_of(name, k), tokens_of(image)
    before = {key: np.copy(x) for key, x in image.items()}
    chosen = method.select(tokens)

    count = expected_count(method, image, k)
    picks = chosen.indices.tolist()
    assert len(picks) == len(set(picks)) == int(chosen.count) == count
    assert set(picks) <= set(range(n))
    assert chosen.size == n

    assert method.select(tokens).indices.tolist() == picks
    for key, x in before.items():
        assert np.array_equal(np.asarray(image[key]), x), f"{key} was modified"


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(), data=st.data())
@settings(max_examples=15)
def test_numpy_and_torch_agree_in_float64(name, image, data):
    torch = pytest.importorskip("torch")
    k = data.draw(st.integers(1, len(image["features"])), label="k")
    method = method_of(name, k)
    with_torch = tokens_of(image, lambda x: torch.asarray(np.copy(x)))
    chosen = method.select(with_torch)
    assert isinstance(chosen.indices, torch.Tensor)
    assert chosen.indices.tolist() == method.select(tokens_of(image)).indices.tolist()


@pytest.mark.parametrize("name", BLIND_TO_POSITION)
@given(image=images(smooth=True), data=st.data())
@settings(max_examples=15)
def test_permuting_the_tokens_permutes_the_picks(name, image, data):
    n, width = image["features"].shape
    # Beyond the rank of its kernel nothing tells CDPruner's candidates apart but their index.
    most = min(n, width) if name == "cdpruner" else n
    k = data.draw(st.integers(1, most), label="k")
    if name == "divprune":
        # Two tokens that are each other's nearest, farther than all others, tie for the start.
        cosines = unit(image["features"]) @ unit(image["features"]).T - 3 * np.eye(n)
        nearest = np.sort(np.max(cosines, axis=1))
        assume(n == 1 or nearest[1] - nearest[0] > 1e-9)
    order = np.array(data.draw(st.permutations(range(n)), label="order"))
    moved = dict(image)
    for key in ("features", "embeds", "attention", "attention_shallow", "keys"):
        moved[key] = image[key][order]
    # Where the tokens stand is what these methods do not look at.
    method, turned = (method_of(name, k) for _ in range(2))
    if name == "fps":
        turned = sc.FPS(keep=k, start=int(np.flatnonzero(order == method.start)[0]))
    chosen = method.select(tokens_of(image).with_(grid=None))
    again = turned.select(tokens_of(moved).with_(grid=None))
    assert set(order[again.indices].tolist()) == set(chosen.indices.tolist())


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(), data=st.data())
@settings(max_examples=8)
def test_half_precision_is_accepted(name, image, data):
    k = data.draw(st.integers(1, len(image["features"])), label="k")
    method = method_of(name, k)
    chosen = method.select(tokens_of(image, dtype=np.float16))
    picks = chosen.indices.tolist()
    assert len(set(picks)) == expected_count(method, image, k) == len(picks)


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(smooth=True), data=st.data())
@settings(max_examples=10)
def test_scores_do_not_depend_on_the_budget(name, image, data):
    # What crops share a budget by: see `secateur.integrations.choosing`.
    k = data.draw(st.integers(1, len(image["features"])), label="k")
    one, several = (method_of(name, each).select(tokens_of(image)).scores for each in (1, k))

    if k < len(image["features"]):
        assert (one is None) == (several is None)
    if one is not None and several is not None:
        np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(smooth=True), data=st.data())
@settings(max_examples=5)
def test_scores_are_what_crops_are_weighed_by(name, image, data):
    method = method_of(name, data.draw(st.integers(1, len(image["features"])), label="k"))
    scores = method.select(tokens_of(image)).scores
    # EADP's own crops are `ChoosesParts`; VidCom2's frames are no crops.
    if scores is not None and not isinstance(method, (ChoosesParts, sc.VidCom2)):
        np.testing.assert_array_equal(method.weigh(tokens_of(image)), scores)


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(), more=st.integers(0, 3))
@settings(max_examples=8)
def test_a_budget_of_all_keeps_all(name, image, more):
    n = len(image["features"])
    for keep in (n + more, 1.0):
        method = method_of(name, keep)
        chosen = method.select(tokens_of(image))
        if isinstance(method, sc.PixelPrune):
            assert int(chosen.count) == expected_count(method, image, n)
        else:
            assert chosen.sorted().tolist() == list(range(n))


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(), share=st.floats(0.01, 1.0))
@settings(max_examples=8)
def test_a_share_is_rounded_down_but_never_to_nothing(name, image, share):
    n = len(image["features"])
    k = max(1, int(n * share + 1e-9))
    method = method_of(name, share)
    kept = int(method.select(tokens_of(image)).count)
    if name in ROUND_OTHERWISE:
        assert kept in (k, k + 1)
        return
    if name == "vitcop":  # its keep is an average over layers
        k = max(k, n // 2)
    assert method.budget(n) == (n if name in (*KEEP_A_FRAME, "mustdrop") else k)
    assert kept == expected_count(method, image, k)


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images(smooth=True), data=st.data())
@settings(max_examples=8)
def test_a_batch_is_its_images_one_by_one(name, image, data):
    n = len(image["features"])
    k = data.draw(st.integers(1, n), label="k")
    other = {
        key: x if key in ("grid", "text", "text_global") else np.flip(x, axis=0)
        for key, x in image.items()
    }
    method = method_of(name, k)
    both = {
        key: x if key in ("grid", "text", "text_global") else np.stack([x, other[key]])
        for key, x in image.items()
    }
    together = method.select(tokens_of(both))
    alone = method.select([tokens_of(image), tokens_of(other)])
    for row, one in enumerate(alone):
        assert together.row(row).indices.tolist() == one.indices.tolist()


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images())
@settings(max_examples=3)
def test_a_batch_without_images_is_ordinary(name, image):
    none = {
        key: x if key in ("grid", "text", "text_global") else np.empty((0, *x.shape), x.dtype)
        for key, x in image.items()
    }
    chosen = method_of(name, 1).select(tokens_of(none))
    assert chosen.batch_shape == chosen.count.shape == (0,)
    assert method_of(name, 1).select([]) == []


def poisoned(image: dict, name: str, bad: float) -> sc.Tokens:
    x = image[name].astype(np.float64)
    x[(-1,) * x.ndim] = bad
    return tokens_of(image).with_(**{name: x})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", CHOOSING)
@given(image=images())
@settings(max_examples=3)
def test_nan_is_refused_by_name(name, bad, image):
    method = method_of(name, 1)
    asked = sorted((method.needs | {"features"}) & {*NUMBERS, "pixels"})
    for each in asked:
        with pytest.raises(ValueError, match=f"^{each}: contains NaN or infinity"):
            method.select(poisoned(image, each, bad))


@pytest.mark.parametrize("name", CHOOSING)
@given(image=images())
@settings(max_examples=3)
def test_a_missing_input_is_asked_for(name, image):
    method, tokens = method_of(name, 1), tokens_of(image)
    for each in sorted(method.needs - {"features"}):
        with pytest.raises(sc.MissingInputError, match=each) as caught:
            method.select(tokens.with_(**{each: None}))
        assert caught.value.missing == each
        assert str(caught.value).startswith(f"{type(method).__name__} needs tokens.{each}: ")
        assert "an attachment" in str(caught.value)


@pytest.mark.parametrize("name", INSIDE_ONLY)
@given(image=images())
@settings(max_examples=3)
def test_methods_that_act_inside_say_so(name, image):
    with pytest.raises(ValueError, match="prunes inside the language model: attach it"):
        method_of(name, 1).select(tokens_of(image))


@pytest.mark.parametrize("name", sorted(sc.methods()))
def test_parameters_round_trip(name):
    import json
    import pickle

    method = method_of(name, 7)
    stored = json.loads(json.dumps(method.to_dict()))
    assert stored["method"] == name
    assert sc.Method.from_dict(stored) == method
    assert eval(repr(method), dict(vars(sc))) == method
    assert pickle.loads(pickle.dumps(method)) == method
    with pytest.raises(AttributeError):
        method.keep = 8
    for item in fields(method):
        assert item.name in stored or item.name in ("published", "over")


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, float("nan"), True, "64", None])
@pytest.mark.parametrize("name", sorted(sc.methods()))
def test_a_budget_that_is_none_is_refused(name, keep):
    with pytest.raises(ValueError, match=r"^keep: "):
        method_of(name, keep)
