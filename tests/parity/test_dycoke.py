"""DyCoke against the authors' program: kept tokens in order, and the cache that moves."""

from __future__ import annotations

import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.dycoke import moving_cache

from . import calls


@pytest.mark.parametrize("stem", ["new_dycoke_even", "new_dycoke_odd"])
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["features"] = to_xp(given["features"])
    method = sc.published(name, **settings)
    chosen = method.select(sc.Tokens(**given))
    calls.check(stem, case, chosen)
    assert to_numpy(chosen.indices).tolist() == case["kept"].tolist()
    assert to_numpy(chosen.per_frame(given["frames"])).tolist() == case["per_frame"].tolist()
    assert method.budget(chosen.size, given["frames"]) == len(case["kept"])


def test_decoding(recorded, to_xp, to_numpy):
    case = recorded("new_dycoke_decoding")
    told = json.loads(str(case["params"]))
    start, stop = told["start"], told["start"] + told["length"]
    before = None
    for step, heads in enumerate(case["attention"]):
        attention = to_xp(heads.mean(axis=0)[start:stop])
        seen, likeness = moving_cache(attention, before, keep=1 - told["p"])
        expected = case["kept_keys"][step]
        assert to_numpy(seen).tolist() == expected[start:stop].tolist()
        assert np.delete(expected, np.s_[start:stop]).all()
        np.testing.assert_allclose(float(likeness), case["similarity"][step], atol=1e-10)
        before = attention
