"""What all methods share: how inputs come in, how parameters go out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods import base, table
from secateur.core.selection import stack


@dataclass(frozen=True)
class Last(sc.Method):
    """The last tokens, first things last."""

    name: ClassVar[str] = "last"
    complexity: ClassVar[str] = "k"
    reference: ClassVar[str] = "nobody"

    @property
    def needs(self):
        return frozenset({"features"})

    def choose(self, tokens, k):
        xp = np
        picks = xp.broadcast_to(xp.arange(tokens.size)[::-1][:k].copy(), (*tokens.batch_shape, k))
        return sc.Selection.of(picks, tokens.size)


def test_a_method_of_ones_own_is_a_few_lines():
    chosen = Last(keep=2).select(sc.Tokens(features=np.ones((3, 5, 2))))
    assert chosen.indices.tolist() == [[4, 3]] * 3
    assert chosen.count.tolist() == [2, 2, 2]


def test_a_list_gives_a_list(image):
    images = [image(n=n) for n in (4, 9, 16)]
    chosen = sc.TopK(keep=0.5).select(images)
    assert [each.size for each in chosen] == [4, 9, 16]
    assert [int(each.count) for each in chosen] == [2, 4, 8]


def test_what_is_no_tokens_is_refused():
    with pytest.raises(ValueError, match=r"tokens: expected Tokens, got ndarray"):
        Last().select([np.ones((4, 2))])


def test_missing_inputs_name_method_input_and_source(image):
    with pytest.raises(sc.MissingInputError) as caught:
        sc.EADP().select(image().with_(text=None))
    message = str(caught.value)
    assert message.startswith("EADP needs tokens.text: ")
    assert "an attachment takes them from the text encoder" in message


def test_unused_inputs_are_not_looked_at(image):
    poisoned = np.full((36, 8), np.nan)
    chosen = sc.TopK(keep=3).select(image().with_(embeds=poisoned, keys=poisoned))
    assert int(chosen.count) == 3


def test_optional_inputs_are_checked_where_given(image):
    with pytest.raises(ValueError, match=r"^embeds: contains NaN"):
        sc.EADP(keep=3).select(image().with_(embeds=np.full((36, 8), np.nan)))


def test_masked_text_may_hold_anything(image):
    tokens = image()
    spoilt = tokens.text.copy()
    spoilt[1] = np.nan
    mask = np.array([True, False, True, True, True])
    chosen = sc.EADP(keep=5).select(tokens.with_(text=spoilt, text_mask=mask))
    without = sc.EADP(keep=5).select(tokens.with_(text=np.delete(tokens.text, 1, axis=0)))
    assert chosen.indices.tolist() == without.indices.tolist()
    with pytest.raises(ValueError, match=r"^text: contains NaN"):
        sc.EADP(keep=5).select(tokens.with_(text=spoilt))
    listed = tokens.with_(text=spoilt, text_mask=mask.tolist())
    assert sc.EADP(keep=5).select(listed).indices.tolist() == chosen.indices.tolist()
    several = tokens.with_(text=[tokens.text, spoilt], text_global=None, text_mask=[None, mask])
    assert int(sc.EADP(keep=5).select(several).count) == 5


def test_check_finite_can_be_skipped(image):
    attention = image().attention.copy()
    attention[0] = np.inf
    tokens = image().with_(attention=attention)
    with pytest.raises(ValueError, match=r"^attention: contains NaN or infinity"):
        sc.TopK(keep=1).select(tokens)
    assert sc.TopK(keep=1).select(tokens, check_finite=False).indices.tolist() == [0]


def test_negative_attention_is_refused(image):
    with pytest.raises(ValueError, match=r"^attention: expected no negative numbers"):
        sc.TopK().select(image().with_(attention=np.linspace(-1, 1, 36)))


def test_normalised_pixels_are_refused():
    tokens = sc.Tokens(
        features=np.ones((4, 2)), pixels=np.linspace(-2.1, 2.6, 56 * 56 * 3).reshape(56, 56, 3)
    )
    with pytest.raises(ValueError, match=r"before normalisation, 0\.\.255, got -2\.1\.\.2\.6"):
        sc.ERASE().select(tokens)


def test_backend_is_chosen_by_call(image):
    fast, slow = (sc.EADP(keep=7).select(image(), backend=name) for name in ("auto", "reference"))
    assert fast.indices.tolist() == slow.indices.tolist()
    with pytest.raises(ValueError, match=r"backend: expected one of"):
        sc.EADP().select(image(), backend="fortran")


def test_gradients_stay_outside():
    torch = pytest.importorskip("torch")
    features = torch.randn(16, 4, requires_grad=True)
    text = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    chosen = sc.EADP(keep=4).select(sc.Tokens(features=features, text=text))
    assert not chosen.scores.requires_grad
    assert chosen.gather(features).requires_grad


def test_rows_are_the_images_of_a_batch(image):
    tokens = image(batch=(2, 3))
    parts = list(tokens.rows())
    assert [each.batch_shape for each in parts] == [()] * 6
    assert np.array_equal(parts[4].attention, tokens.attention[1, 1])
    together = stack([sc.TopK(keep=4).select(each) for each in parts], (2, 3))
    assert np.array_equal(together.indices, sc.TopK(keep=4).select(tokens).indices)
    (only,) = image().rows()
    assert only.batch_shape == ()


def test_from_dict_says_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"^method: expected one of agilepruner, .*; got 'nope'"):
        sc.Method.from_dict({"method": "nope"})
    with pytest.raises(ValueError, match=r"^eadp: no parameter 'alhpa'; it has aggregate, alpha"):
        sc.Method.from_dict({"method": "eadp", "alhpa": 0.3})
    with pytest.raises(ValueError, match=r"^method: 'topk' is no EADP"):
        sc.EADP.from_dict({"method": "topk"})
    assert sc.TopK.from_dict({"method": "topk", "keep": 3}) == sc.TopK(keep=3)


def test_numpy_numbers_become_plain_ones():
    stored = sc.EADP(keep=np.int64(7), alpha=np.float32(0.25)).to_dict()
    assert type(stored["keep"]) is int
    assert type(stored["alpha"]) is float


def test_nested_methods_round_trip():
    mixture = sc.Mixture(keep=9, attention=sc.TopK(), diversity=sc.FPS(start=2))
    assert mixture.to_dict()["diversity"]["method"] == "fps"
    assert sc.Method.from_dict(mixture.to_dict()) == mixture


def test_method_by_name():
    assert sc.method("eadp", keep=3) == sc.EADP(keep=3)
    with pytest.raises(ValueError, match=r"^method: expected one of .*topk.*; got 'top-k'"):
        sc.method("top-k")


def test_other_packages_bring_methods(monkeypatch):
    from secateur.core import methods as registry

    found = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    found.append(EntryPoint("last", f"{__name__}:Last", "secateur.methods"))
    monkeypatch.setattr(EntryPoint, "load", lambda self: Last)
    assert sc.method("last", keep=1) == Last(keep=1)
    assert sc.Method.from_dict({"method": "last", "keep": 5}) == Last(keep=5)
    # Nobody takes the name of one of ours.
    found.append(EntryPoint("eadp", f"{__name__}:Last", "secateur.methods"))
    assert sc.methods()["eadp"] is sc.EADP
    monkeypatch.setattr(EntryPoint, "load", lambda self: dict)
    with pytest.raises(ValueError, match=r"Last, registered as the method 'last', is no Method"):
        sc.methods()


def test_packages_are_not_asked_about_names_that_are_ours(monkeypatch):
    from secateur.core import methods as registry

    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or ())
    assert sc.method("eadp", keep=3) == sc.EADP(keep=3)
    assert sc.published("divprune", keep=3).published
    assert sc.Method.from_dict({"method": "eadp", "keep": 3}) == sc.EADP(keep=3)
    assert asked == []
    for ask in (sc.method, sc.published, lambda name: sc.Method.from_dict({"method": name})):
        with pytest.raises(ValueError, match=r"expected one of .*topk.*; got 'top-k'"):
            ask("top-k")
    assert asked == ["secateur.methods"] * 3


def test_the_table_tells_every_method():
    rows = table()
    assert [row.name for row in rows] == list(sc.methods())
    by_name = {row.name: row for row in rows}
    assert by_name["fastv"].needs == "queries and keys"
    assert by_name["fastv"].acts == "inside it"
    assert by_name["erase"].acts == "before the language model and inside it"
    assert by_name["eadp"].acts == "before the language model"
    for row in rows:
        assert all(row), f"{row.name} leaves a column empty"


@pytest.mark.parametrize("name", sorted(sc.methods()))
def test_every_docstring_is_a_reference(name):
    text = sc.methods()[name].__doc__
    for section in ("Parameters", "Notes", "References", "Examples"):
        assert f"\n    {section}\n    {'-' * len(section)}\n" in text
    assert ">>> " in text


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (base.require_share, ("x", 1.1)),
        (base.require_share, ("x", float("nan"))),
        (base.require_positive, ("x", 0)),
        (base.require_positive, ("x", float("inf"))),
        (base.require_whole, ("x", 1.5)),
        (base.require_whole, ("x", True)),
        (base.require_one_of, ("x", "c", ("a", "b"))),
    ],
)
def test_parameter_checks_name_the_parameter(check, arguments):
    with pytest.raises(ValueError, match=r"^x: expected .* got "):
        check(*arguments)


def test_names_that_need_a_model_come_when_asked_for():
    assert {"attach", "prune_inputs", "UnsupportedModelError"} <= set(dir(sc))
    assert "attach" not in sc.__all__
    with pytest.raises(AttributeError, match=r"module 'secateur' has no attribute 'prune'"):
        sc.prune  # noqa: B018
