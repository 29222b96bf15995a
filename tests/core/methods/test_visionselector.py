"""A trained scorer: its formula, its files, and what JSON may hold of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.visionselector import Scorer, soft_weights
from secateur.testing import assert_selection

PARTS = ("q_weight", "q_bias", "k_weight", "k_bias")


def weights(d=8, h=4, seed=0, convert=np.asarray):
    dice = np.random.default_rng(seed)
    shapes = {"q_weight": (h, d), "q_bias": (h,), "k_weight": (h, d), "k_bias": (h,)}
    return Scorer(**{name: convert(dice.normal(size=shape)) for name, shape in shapes.items()})


def slow(x, scorer):
    queries = x @ scorer.q_weight.T + scorer.q_bias
    keys = x @ scorer.k_weight.T + scorer.k_bias
    return (queries @ keys.T / np.sqrt(len(scorer.q_bias))).mean(axis=1)


@pytest.mark.parametrize("k", [1, 7, 36])
def test_it_is_its_definition(image, to_xp, to_numpy, k):
    host = image(batch=(2,)).features
    tokens = sc.Tokens(features=to_xp(host))
    chosen = sc.VisionSelector(keep=k, weights=weights(convert=to_xp)).select(tokens)
    assert_selection(chosen, k)
    for b in range(2):
        scores = slow(host[b], weights())
        np.testing.assert_allclose(to_numpy(chosen.scores)[b], scores, rtol=1e-10, atol=1e-12)
        assert to_numpy(chosen.indices)[b].tolist() == np.argsort(-scores)[:k].tolist()


def test_weights_of_another_library_and_of_half_precision(image):
    torch = pytest.importorskip("torch")
    tokens = image()
    expected = sc.VisionSelector(keep=9, weights=weights()).select(tokens)
    half = weights(convert=lambda x: torch.tensor(x, dtype=torch.bfloat16, requires_grad=True))
    mixed = sc.VisionSelector(keep=9, weights=half)
    for features in (tokens.features, torch.tensor(tokens.features)):
        chosen = mixed.select(sc.Tokens(features=features))
        assert type(chosen.scores) is type(features)
        np.testing.assert_allclose(np.asarray(chosen.scores), expected.scores, rtol=0.2, atol=0.1)


def test_equal_tokens_go_to_the_lowest_index(to_xp, to_numpy):
    x = to_xp(np.repeat(np.random.default_rng(1).normal(size=(1, 8)), 6, axis=0))
    chosen = sc.VisionSelector(keep=3, weights=weights(convert=to_xp)).select(sc.Tokens(features=x))
    assert to_numpy(chosen.indices).tolist() == [0, 1, 2]
    one = sc.VisionSelector(weights=weights()).select(sc.Tokens(features=np.zeros((1, 8))))
    assert one.indices.tolist() == [0]


def test_soft_weights_add_up(to_xp, to_numpy):
    scores = np.random.default_rng(0).normal(size=(3, 50)) * np.array([[1.0], [30.0], [0.0]])
    for share in (0.0, 0.2, 1.0):
        w = to_numpy(soft_weights(to_xp(scores), share))
        wanted = np.clip(50 * share, 1e-4, 50 - 1e-4)
        np.testing.assert_allclose(w.sum(axis=-1), wanted, rtol=1e-9)
        order = np.argsort(scores[0])
        assert (np.diff(w[0, order]) >= 0).all()


def test_files(tmp_path, image):
    saved = weights().save(tmp_path / "scorer.safetensors")
    for name in PARTS:
        single = np.asarray(getattr(weights(), name), dtype=np.float32)
        np.testing.assert_array_equal(getattr(saved, name), single)
    assert saved == Scorer.load(tmp_path)
    assert repr(saved).startswith("Scorer(8 -> 4, source=")
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(tmp_path / "scorer.safetensors")
    np.testing.assert_array_equal(theirs["importance_scorer.q_proj.weight"], saved.q_weight)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_checkpoint_of_a_whole_model_in_several_files(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    ours = weights()
    kind = getattr(torch, dtype)
    names = dict(zip(("query", "key"), "qk", strict=True))
    scorer = {
        f"module.visual.importance_scorer.{name}.{part}": torch.tensor(
            getattr(ours, f"{role}_{part}"), dtype=kind
        )
        for name, role in names.items()
        for part in ("weight", "bias")
    }
    layers = {
        f"model.layers.{i}.self_attn.{role}_proj.weight": torch.ones(2, 2)
        for i in range(9)
        for role in "qkv"
    }
    split = dict(list(scorer.items())[:2]), dict(list(scorer.items())[2:])
    safetensors.save_file(layers, tmp_path / "model-1.safetensors")
    for i, part in enumerate(split):
        safetensors.save_file({**layers, **part}, tmp_path / f"model-{i + 2}.safetensors")
    loaded = Scorer.load(tmp_path)
    for name in PARTS:
        expected = torch.tensor(getattr(ours, name), dtype=kind).float().numpy()
        np.testing.assert_array_equal(np.asarray(getattr(loaded, name), np.float32), expected)
    with pytest.raises(ValueError, match="holds no scorer of VisionSelector: no tensor for k_bias"):
        Scorer.load(tmp_path / "model-1.safetensors")


def test_json_names_the_file(tmp_path):
    path = tmp_path / "scorer.safetensors"
    method = sc.VisionSelector(keep=5, weights=weights().save(path))
    stored = json.loads(json.dumps(method.to_dict()))
    assert stored["weights"]["source"] == str(path)
    assert sc.Method.from_dict(stored) == method
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(sc.Method.from_dict(stored)) == hash(method)
    assert method != sc.VisionSelector(keep=5, weights=weights(seed=1))
    weights(seed=1).save(path)
    with pytest.raises(ValueError, match="holds other weights than when this was stored"):
        sc.Method.from_dict(stored)


def test_arrays_alone_are_refused_in_json():
    with pytest.raises(ValueError, match=r"weights: arrays have no place in JSON; Scorer\.save"):
        sc.VisionSelector(weights=weights()).to_dict()
    assert sc.VisionSelector().to_dict()["weights"] is None


def test_what_is_refused(image, tmp_path):
    with pytest.raises(ValueError, match="weights: VisionSelector ranks tokens by trained weights"):
        sc.VisionSelector().select(image())
    with pytest.raises(ValueError, match="features: expected 5 numbers a token"):
        sc.VisionSelector(weights=weights(d=5)).select(image())
    with pytest.raises(ValueError, match=r"weights: expected a Scorer or None, got \[1"):
        sc.VisionSelector(weights=[1.0])
    with pytest.raises(ValueError, match=r"k_bias: expected shape \(4,\) beside q_weight \(4, 8\)"):
        Scorer(np.ones((4, 8)), np.ones(4), np.ones((4, 8)), np.ones(3))
    with pytest.raises(ValueError, match="q_bias: contains NaN"):
        Scorer(np.ones((1, 2)), np.array([np.nan]), np.ones((1, 2)), np.ones(1))
    with pytest.raises(ValueError, match="path: no safetensors file at"):
        Scorer.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"not at all what it says")
    with pytest.raises(ValueError, match="is no safetensors file"):
        Scorer.load(tmp_path)
    whole = json.dumps({"q.bias": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(whole).to_bytes(8, "little") + whole + bytes(8))
    with pytest.raises(ValueError, match=r"path: tensor 'q\.bias' has dtype I64"):
        Scorer.load(tmp_path)
