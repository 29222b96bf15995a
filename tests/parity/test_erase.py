"""ERASE against the authors' program: entropies, level, count and kept patches."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

CASES = ["erase_flat", "erase_noise", "erase_text"]


def chosen_of(case, convert=np.asarray, backend=None):
    method = sc.ERASE(
        keep=float(case["final"]),
        thresholds=tuple(case["thresholds"].tolist()),
        ratios=tuple(case["ratios"].tolist()),
        patch=int(case["patch"]),
    )
    size = len(case["entropy"])
    tokens = sc.Tokens(features=convert(np.ones((size, 2))), pixels=convert(case["image"]))
    return method.select(tokens, backend=backend)


@pytest.mark.parametrize("name", CASES)
def test_entropies_level_and_count(golden, xp, to_xp, to_numpy, name):
    case = golden(name)
    chosen = chosen_of(case, to_xp)
    # The program adds 1e-10 to every bin: at most 256 * 1e-10 * log(1e10).
    np.testing.assert_allclose(to_numpy(chosen.scores), case["entropy"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(float(chosen.info["complexity"]), case["median"], atol=2e-6)
    assert int(chosen.info["level"]) == int(case["level"])
    assert int(chosen.count) == int(case["count"])


@pytest.mark.parametrize("name", ["erase_flat", "erase_noise"])
def test_kept_patches(golden, xp, to_xp, to_numpy, name):
    case = golden(name)
    chosen = chosen_of(case, to_xp)
    assert to_numpy(chosen.sorted()).tolist() == case["indices"].tolist()


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("name", ["erase_flat", "erase_noise"])
def test_kept_patches_of_each_backend(golden, name, backend):
    case = golden(name)
    assert chosen_of(case, backend=backend).sorted().tolist() == case["indices"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_total_entropy_kept(golden, name):
    case = golden(name)
    chosen = chosen_of(case)
    ours = case["entropy"].astype(np.float64)[chosen.indices].sum()
    theirs = case["entropy"].astype(np.float64)[case["indices"]].sum()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_published_preset_is_the_one_of_the_cases(golden):
    case = golden("erase_noise")
    preset = sc.ERASE.preset("qwen2.5-vl-7b")
    np.testing.assert_allclose(preset.thresholds, case["thresholds"], rtol=1e-7)
    np.testing.assert_allclose(preset.ratios, case["ratios"], rtol=1e-7)
    assert (preset.patch, preset.keep) == (int(case["patch"]), float(case["final"]))
