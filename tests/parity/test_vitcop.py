"""ViTCoP against the authors' program: clusters, and what folds into what inside."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur.core.arrays import top
from secateur.core.methods.vitcop import density_clusters, fold_clusters, key_norms


def renamed(labels):
    """The same clusters, named by their first tokens: numbers among equals are open there."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    return first[place].tolist()


def test_clusters_in_the_encoder(golden, to_xp, to_numpy, xp):
    case = golden("new_vitcop_encoder")
    told = json.loads(str(case["params"]))
    count = int(told["share"] * 576)
    kept = np.sort(to_numpy(top(to_xp(case["attention"].sum(1)), count)), axis=-1)
    np.testing.assert_array_equal(kept, case["kept"])
    places = np.stack([kept // told["grid"][1], kept % told["grid"][1]], -1) / told["grid"]
    labels = density_clusters(
        to_xp(np.take_along_axis(case["keys"], kept[..., None], axis=1)),
        to_xp(places),
        share=told["centres"],
        scale=told["dc"],
        radius=told["radius"],
    )
    assert (case["labels"] >= 0).all()
    for ours, theirs in zip(to_numpy(labels), case["labels"], strict=True):
        assert renamed(ours) == renamed(theirs)


@pytest.mark.parametrize("name", ["new_vitcop_inner", "new_vitcop_inner_many"])
def test_folding_between_layers(golden, to_xp, to_numpy, name):
    case = golden(name)
    told = json.loads(str(case["params"]))
    first, last = told["start"], told["start"] + told["length"]
    total = len(case["states"])
    norms = key_norms(to_xp(case["keys"]), to_xp(np.arange(first, last)))
    np.testing.assert_allclose(to_numpy(norms), case["key_norm"], rtol=1e-8)
    chosen = fold_clusters(norms, to_xp(case["labels"]), told["keep"])
    kept, folded = to_numpy(chosen.indices), to_numpy(chosen.folded)
    assert [*range(first), *(kept + first), *range(last, total)] == case["positions"].tolist()
    alone = kept[to_numpy(chosen.fold_weights)[kept] == 1.0]
    assert (alone + first).tolist() == case["selected"].tolist()
    into = np.full(total, -1)
    into[first:last] = np.where(np.isin(np.arange(last - first), alone), -1, folded + first)
    np.testing.assert_array_equal(into, case["merged_into"])
    image = to_numpy(chosen.merge(to_xp(case["states"][first:last])))
    states = np.concatenate([case["states"][:first], image, case["states"][last:]])
    np.testing.assert_allclose(states, case["merged"], rtol=1e-8, atol=1e-12)
