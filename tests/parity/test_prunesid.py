"""PruneSID against the authors' program, run in float64 and given its singular vectors."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.prunesid import grouped_tokens

LLAVA = ["new_prunesid_one", "new_prunesid_crops", "new_prunesid_bound"]
QWEN = ["new_prunesid_qwen", "new_prunesid_wide"]


def check(chosen, case, to_numpy):
    np.testing.assert_allclose(to_numpy(chosen.info["threshold"]), case["threshold"], rtol=1e-8)
    np.testing.assert_array_equal(to_numpy(chosen.info["taken"]), case["nms_counts"])
    np.testing.assert_array_equal(to_numpy(chosen.info["budget"]), case["group_budget"])


@pytest.mark.parametrize("stem", LLAVA)
def test_llava(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    chosen = grouped_tokens(
        to_xp(case["features"][:, 1:]),
        case.params["k"] - 1,  # the class token is one of theirs
        to_xp(case["attention"].sum(axis=1)[:, 1:]),
        components=to_xp(case["components"]),
        fill_order=case["fill_order"],
    )
    check(chosen, case, to_numpy)
    np.testing.assert_array_equal(to_numpy(chosen.indices) + 1, case["kept"][:, 1:])
    assert not case["kept"][:, 0].any()


@pytest.mark.parametrize("stem", QWEN)
def test_qwen(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    size = len(case["features"])
    k = sc.published("prunesid", keep=case.params["k"], model="qwen").budget(size)
    assert k == len(case["kept"])
    chosen = grouped_tokens(
        to_xp(case["features"]),
        k,
        model="qwen",
        components=to_xp(case["components"]),
        fill_order=case["fill_order"],
    )
    check(chosen, case, to_numpy)
    np.testing.assert_array_equal(to_numpy(chosen.indices), case["kept"])
