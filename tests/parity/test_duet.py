"""DUET-VLM against the authors' programs: kept and merged tokens, and what stays inside."""

from __future__ import annotations

import json

import numpy as np

from secateur.core.methods.duet import asked_tokens, pooled_merge


def test_crops_of_llava(golden, to_xp, to_numpy):
    """The class token is one of the dominant ones there; patches are counted from 1."""
    case = golden("new_duet_crops")
    told = json.loads(str(case["params"]))
    patches = case["features"][:, 1:]
    chosen = pooled_merge(
        to_xp(case["attention"].sum(1)[:, 1:]),
        to_xp(case["keys"][:, 1:]),
        dominant=told["dominant"] - 1,
        contextual=told["contextual"],
        width=told["width"],
    )
    indices, merged = to_numpy(chosen.indices), to_numpy(chosen.merge(to_xp(patches)))
    for crop in range(2):
        dominant = np.sort(indices[crop, : told["dominant"] - 1])
        assert [0, *(1 + dominant)] == case["kept"][crop].tolist()
        # The program's order: class token, dominant by place, anchors by attention.
        places = np.sort(indices[crop])
        order = [*dominant, *indices[crop, told["dominant"] - 1 :]]
        ours = merged[crop][np.searchsorted(places, order)]
        np.testing.assert_allclose(ours, case["merged"][crop, 1:], rtol=1e-8, atol=1e-12)
        np.testing.assert_array_equal(case["features"][crop, 0], case["merged"][crop, 0])


def test_qwen(golden, to_xp, to_numpy):
    case = golden("new_duet_qwen")
    told = json.loads(str(case["params"]))
    first, last = told["start"], told["start"] + told["length"]
    chosen = pooled_merge(
        to_xp(case["attention"]),
        to_xp(case["keys"]),
        dominant=told["dominant"],
        contextual=told["contextual"],
        width=told["width"],
    )
    dominant = np.sort(to_numpy(chosen.indices)[: told["dominant"]])
    assert dominant.tolist() == case["dominant"].tolist()
    kept = to_numpy(chosen.sorted())
    total = len(case["states"])
    stay = [*range(first), *(first + kept), *range(last, total)]
    assert stay == case["positions"].tolist()
    image = to_numpy(chosen.merge(to_xp(case["states"][first:last])))
    states = np.concatenate([case["states"][:first], image, case["states"][last:]])
    np.testing.assert_allclose(states, case["merged"], rtol=1e-8, atol=1e-12)


def test_between_layers(golden, to_xp, to_numpy):
    case = golden("new_duet_inner")
    told = json.loads(str(case["params"]))
    positions = np.arange(case["queries"].shape[1])
    visual = np.arange(told["start"], told["start"] + told["length"])
    for stage, share in enumerate(told["ratios"]):
        queries, keys = (
            case[name][stage, positions].reshape(len(positions), told["heads"], -1)
            for name in ("queries", "keys")
        )
        there = np.flatnonzero(np.isin(positions, visual))
        stay = asked_tokens(
            to_xp(queries.transpose(1, 0, 2)),
            to_xp(keys.transpose(1, 0, 2)),
            visual=to_xp(there),
            asking=to_xp(np.arange(there[-1] + 1, len(positions))),
            keep=int(told["length"] * share),
        )
        gone = np.delete(there, to_numpy(stay))
        positions = np.delete(positions, gone)
        assert positions.tolist() == case[f"positions_{stage}"].tolist()
