"""Inside the language model: schedules, and what stays, against the full attention matrix."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.arrays import to_numpy
from secateur.core.attention import text_attention
from secateur.core.methods.sparsevlm import matrix_rank

H, G, T, SIZE, WIDTH = 6, 2, 40, 8, 12
VISUAL, TEXT = np.arange(5, 29), np.arange(29, 40)
CUT = sc.Cut(after=2, keep=7)


@pytest.fixture(scope="module")
def layer():
    dice = np.random.default_rng(0)
    return {
        "queries": dice.normal(size=(H, T, SIZE)),
        "keys": dice.normal(size=(G, T, SIZE)),
        "hidden": dice.normal(size=(T, WIDTH)),
    }


def attention(layer, mask=None):
    """Causal attention (T, T) averaged over heads, the whole matrix."""
    keys = np.repeat(layer["keys"], H // G, axis=0)
    logits = layer["queries"] @ np.swapaxes(keys, 1, 2) / np.sqrt(SIZE)
    hidden = np.triu(np.ones((T, T), dtype=bool), 1)
    if mask is not None:
        hidden = hidden | ~mask
    logits = np.where(hidden, -np.inf, logits)
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return (weight / weight.sum(-1, keepdims=True)).mean(0)


def best(scores, keep):
    return sorted(np.argsort(-scores, kind="stable")[:keep].tolist())


def kept(method, layer, cut=CUT, convert=np.asarray, mask=None):
    stays = method.keep_visual(
        cut,
        convert(layer["queries"]),
        convert(layer["keys"]),
        visual=convert(VISUAL),
        text=convert(TEXT),
        mask=None if mask is None else convert(mask),
        hidden=convert(layer["hidden"]),
    )
    return to_numpy(stays).tolist()


def raters(layer, text=TEXT):
    products = layer["hidden"][VISUAL] @ layer["hidden"][text].T
    weight = np.exp(products - products.max(1, keepdims=True))
    relevance = (weight / weight.sum(1, keepdims=True)).mean(0)
    return text[relevance > relevance.mean()]


EXPECTED = {
    "fastv": lambda layer: attention(layer)[-1, VISUAL],
    "pyramiddrop": lambda layer: attention(layer)[TEXT[-1], VISUAL],
    "erase": lambda layer: attention(layer)[np.ix_(TEXT, VISUAL)].sum(0),
    "sparsevlm": lambda layer: attention(layer)[np.ix_(raters(layer), VISUAL)].mean(0),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_those_of_highest_score_stay(layer, name, to_xp, xp):
    parameters = {"count": "limit"} if name == "sparsevlm" else {}
    method = sc.method(name, **parameters)
    assert kept(method, layer, convert=to_xp) == best(EXPECTED[name](layer), 7)
    mask = np.arange(T) != 30
    assert kept(method, layer, convert=to_xp, mask=mask) == kept(method, layer, mask=mask)


def test_the_methods_differ(layer):
    chosen = [tuple(kept(sc.method(name), layer)) for name in ("fastv", "erase", "sparsevlm")]
    assert len(set(chosen)) == 3


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_padding_plays_no_part(layer, name):
    """Padding on the right, filled with anything, changes nothing."""
    method = sc.method(name)
    dice = np.random.default_rng(1)
    longer = {
        "queries": np.concatenate([layer["queries"], 9 * dice.normal(size=(H, 4, SIZE))], axis=1),
        "keys": np.concatenate([layer["keys"], 9 * dice.normal(size=(G, 4, SIZE))], axis=1),
        "hidden": np.concatenate([layer["hidden"], 9 * dice.normal(size=(4, WIDTH))], axis=0),
    }
    mask = np.arange(T + 4) < T
    stays = method.keep_visual(
        CUT,
        longer["queries"],
        longer["keys"],
        visual=VISUAL,
        text=np.arange(29, T + 4),
        mask=mask,
        hidden=longer["hidden"],
    )
    assert stays.tolist() == kept(method, layer)


def test_text_attention_is_the_sum_of_the_rows(layer):
    received = text_attention(layer["queries"], layer["keys"], visual=VISUAL, text=TEXT)
    np.testing.assert_allclose(received, attention(layer)[np.ix_(TEXT, VISUAL)].sum(0))


class TestSparseVLM:
    """Raters and rank."""

    def test_raters_look_at_the_image_more_than_the_average(self, layer):
        found = sc.SparseVLM.raters(layer["hidden"], VISUAL, TEXT)
        assert found.tolist() == raters(layer).tolist()
        assert 0 < len(found) < len(TEXT)

    def test_all_rate_when_all_are_equal(self):
        found = sc.SparseVLM.raters(np.ones((T, 3)), VISUAL, TEXT)
        assert found.tolist() == TEXT.tolist()

    def test_rank_decides_how_many(self, layer):
        rank = matrix_rank(attention(layer)[np.ix_(raters(layer), VISUAL)])
        assert rank == len(raters(layer))
        for scale in (0.1, 0.5, 1.0, 1.5):
            stays = kept(sc.SparseVLM(scale=scale), layer, cut=sc.Cut(2, 20))
            assert len(stays) == min(20, max(1, int(scale * rank)))

    def test_hidden_states_are_asked_for(self, layer):
        with pytest.raises(ValueError, match=r"^hidden: SparseVLM finds its raters"):
            sc.SparseVLM().keep_visual(
                CUT, layer["queries"], layer["keys"], visual=VISUAL, text=TEXT
            )

    def test_matrix_rank_is_numpys(self):
        dice = np.random.default_rng(0)
        for rank in (1, 3, 5):
            matrix = dice.normal(size=(5, rank)) @ dice.normal(size=(rank, 9))
            assert matrix_rank(matrix) == np.linalg.matrix_rank(matrix) == rank


class TestSchedules:
    """When, and how many remain."""

    def test_fastv(self):
        assert sc.FastV().cuts(32, 576) == (sc.Cut(2, 288),)
        assert sc.FastV(keep=64, after=3).cuts(32, 576) == (sc.Cut(3, 64),)
        assert sc.FastV().cuts(32, 576, earliest=5) == (sc.Cut(5, 288),)
        assert sc.FastV(keep=576).cuts(32, 576) == ()
        assert sc.FastV().cuts(2, 576) == ()

    def test_pyramiddrop(self):
        halves = (sc.Cut(8, 288), sc.Cut(16, 144), sc.Cut(24, 72))
        assert sc.PyramidDrop().cuts(32, 576) == halves
        assert sc.PyramidDrop(keep=72).cuts(32, 576) == halves
        assert sc.PyramidDrop(stages=(0.5,)).cuts(28, 100) == (sc.Cut(14, 50),)
        assert sc.PyramidDrop(keep=576).cuts(32, 576) == ()
        # Three stages that fall on one layer are its last.
        assert sc.PyramidDrop().cuts(32, 576, earliest=30) == (sc.Cut(30, 72),)

    def test_pyramiddrop_reaches_any_count(self):
        for keep in (1, 5, 64, 100, 333, 575):
            assert sc.PyramidDrop(keep=keep).cuts(32, 576)[-1].keep == keep

    def test_sparsevlm(self):
        cuts = sc.SparseVLM(keep=128).cuts(32, 576)
        assert [cut.after for cut in cuts] == [3, 7, 16]
        assert cuts[-1].keep == 128
        assert [cut.after for cut in sc.SparseVLM().cuts(28, 576)] == [3, 6, 14]
        assert sc.SparseVLM(keep=999).cuts(32, 576) == ()

    @pytest.mark.parametrize("name", ["erase", "fastv", "pyramiddrop", "sparsevlm"])
    @pytest.mark.parametrize("earliest", [1, 3])
    def test_cuts_are_in_order_and_possible(self, name, earliest):
        for depth in range(1, 40):
            for size in (1, 2, 7, 100):
                for keep in (1, 0.3, 0.99, 50):
                    cuts = sc.method(name, keep=keep).cuts(depth, size, earliest=earliest)
                    places = [cut.after for cut in cuts]
                    counts = [cut.keep for cut in cuts]
                    assert all(earliest <= place < depth for place in places)
                    assert places == sorted(set(places))
                    assert counts == sorted(set(counts), reverse=True)
                    assert all(1 <= count < size for count in counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones((H, T, 3))}, r"^queries and keys: expected shapes \(H, T, d\)"),
        ({"keys": np.ones((G, T + 1, SIZE))}, r"got \(6, 40, 8\) and \(2, 41, 8\)"),
        ({"visual": np.arange(0)}, r"^visual: expected the position of at least one"),
        ({"text": np.arange(0)}, r"^text: expected the position of at least one"),
    ],
)
def test_layers_are_checked(layer, change, message):
    given = {"queries": layer["queries"], "keys": layer["keys"], "visual": VISUAL, "text": TEXT}
    given |= change
    with pytest.raises(ValueError, match=message):
        sc.ERASE().keep_visual(CUT, given.pop("queries"), given.pop("keys"), **given)


def test_a_mask_that_leaves_nobody_to_ask(layer):
    with pytest.raises(ValueError, match=r"^mask: leaves no token to ask"):
        kept(sc.PyramidDrop(), layer, mask=np.arange(T) < 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sc.FastV(after=0), r"^after: "),
        (lambda: sc.PyramidDrop(stages=()), r"^stages: expected ascending shares"),
        (lambda: sc.PyramidDrop(stages=(0.5, 0.25)), r"^stages: "),
        (lambda: sc.PyramidDrop(stages=(0.5, 1.5)), r"^stages: "),
        (lambda: sc.SparseVLM(after=(7, 3)), r"^after: expected ascending numbers"),
        (lambda: sc.SparseVLM(after=(0,)), r"^after: "),
        (lambda: sc.SparseVLM(scale=0.0), r"^scale: "),
        (lambda: sc.SparseVLM(count="all"), r"^count: expected one of rank, limit"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
