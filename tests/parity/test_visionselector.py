"""VisionSelector against both programs, run in float64: scores, picks, soft weights."""

from __future__ import annotations

import numpy as np

import secateur as sc
from secateur.core.methods.visionselector import Scorer, soft_weights

PARTS = ("q_weight", "q_bias", "k_weight", "k_bias")


def test_scores_and_picks(recorded, to_xp, to_numpy):
    case = recorded("new_visionselector_fifth")
    scorer = Scorer(*(to_xp(case[name]) for name in PARTS))
    method = sc.published("visionselector", keep=case.params["budget"], weights=scorer)
    chosen = method.select(sc.Tokens(features=to_xp(case["features"])))
    np.testing.assert_allclose(to_numpy(chosen.scores), case["scores"], rtol=1e-8)
    np.testing.assert_array_equal(to_numpy(chosen.indices), case["order"])
    np.testing.assert_array_equal(to_numpy(chosen.sorted()), case["kept"])
    weights = soft_weights(chosen.scores, case.params["soft_ratio"])
    np.testing.assert_allclose(to_numpy(weights), case["soft_weights"], rtol=1e-8)
