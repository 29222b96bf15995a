"""VScan against the authors' program, run in float64: local picks, kept set, merged tokens."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

from . import calls

CASES = ["new_vscan_llava", "new_vscan_fewer", "new_vscan_qwen"]


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    for key in ("features", "attention", "attention_shallow"):
        given[key] = to_xp(given[key])
    chosen = sc.published(name, **settings).select(sc.Tokens(**given))
    calls.check(stem, case, chosen)
    if "local" in case.files:
        local = to_numpy(chosen.indices)[: int(chosen.info["local"])]
        np.testing.assert_array_equal(local, case["local"])


def test_all_of_the_budget_is_spent_where_the_program_does_not(recorded):
    case = recorded("new_vscan_fewer")
    name, settings, given = calls.call("new_vscan_fewer", case)
    chosen = sc.method(name, **settings).select(sc.Tokens(**given))
    assert chosen.count.tolist() == [75]
    assert set(case["kept"][0]) < set(chosen.indices[0].tolist())
