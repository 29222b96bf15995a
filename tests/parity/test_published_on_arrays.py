"""`sc.published` on arrays: the same answers of the authors' programs, where they take arrays."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc


@pytest.mark.parametrize("name", ["single_llava15", "single_qwen"])
def test_one_image(golden, name):
    case = golden(name)
    keep = int(case["k"])
    tokens = sc.Tokens(
        features=case["features"],
        embeds=case.get("embeds"),
        text=case["text"],
        text_global=case["text_global"],
        grid=tuple(int(side) for side in case.get("grid", (24, 24))),
        attention=case["attention"],
        attention_shallow=case["attention_shallow"],
    )
    told = {"alpha": float(case["alpha"]), "beta": float(case["beta"])}
    chosen = sc.published("eadp", keep=keep, **told).select(tokens)
    assert chosen.indices.tolist() == case["eadp_order"].tolist()
    chosen = sc.published("divprune", keep=keep).select(tokens)
    assert chosen.indices.tolist() == case["divprune_order"].tolist()
    alpha = float(case["hiprune_alpha"])
    chosen = sc.published("hiprune", keep=keep, alpha=alpha).select(tokens)
    assert chosen.sorted().tolist() == np.sort(case["hiprune"]).tolist()
    chosen = sc.published("vispruner", keep=keep).select(tokens)
    assert chosen.sorted().tolist() == case["vispruner"].tolist()


def test_crops(golden):
    case = golden("crops_next")
    tokens = sc.Tokens(
        features=case["features"],
        embeds=case["embeds"],
        text=case["text"],
        text_global=case["text_global"],
        grid=(24, 24),
    )
    told = {"alpha": float(case["alpha"]), "beta": float(case["beta"]), "crops": "importance"}
    method = sc.published("eadp", keep=int(case["k"]), **told)
    chosen = method.select(tokens)
    assert chosen.count.tolist() == case["quotas"].tolist()
    assert np.array_equal(chosen.mask(), case["mask"])
    # Crops as parts of one image, as an attachment sees them: the same, chosen once.
    rows = method.select_parts(list(tokens.rows()), len(case["quotas"]))
    assert [row.mask().tolist() for row in rows] == case["mask"].tolist()
