"""ToMe against the authors' program: groups, sizes, merged tokens, schedules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secateur.core.methods.tome import kth_matching, merge, merging_schedule, soft_matching


def check(merged, group, case, to_numpy):
    np.testing.assert_array_equal(to_numpy(group), case["group"])
    np.testing.assert_array_equal(to_numpy(merged.sizes), case["size"])
    np.testing.assert_allclose(to_numpy(merged.states), case["merged"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["new_tome_one", "new_tome_cls", "new_tome_cap"])
def test_steps(golden, to_xp, to_numpy, xp, name):
    case = golden(name)
    told = json.loads(str(case["params"]))
    states, metric = to_xp(case["features"]), to_xp(case["keys"])
    sizes, group = None, None
    for r in told["r"]:
        merged = merge(soft_matching(metric, r, class_token=told["class_token"]), states, sizes)
        states, sizes = merged.states, merged.sizes
        metric = states  # the case's later steps match the merged tokens themselves
        group = merged.group if group is None else xp.take(merged.group, group)
    check(merged, group, case, to_numpy)


def test_every_kth(golden, to_xp, to_numpy):
    case = golden("new_tome_kth")
    every = json.loads(str(case["params"]))["kth"]
    merged = merge(kth_matching(to_xp(case["keys"]), every), to_xp(case["features"]))
    check(merged, merged.group, case, to_numpy)


def test_schedules(golden):
    case = golden("new_tome_schedule")
    for i, (layers, r, inflect) in enumerate(
        zip(case["layers"], case["r"], case["inflect"], strict=True)
    ):
        found = merging_schedule(int(layers), int(r), inflect=float(inflect))
        assert list(found) == case[f"out_{i}"].tolist()
