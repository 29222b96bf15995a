"""ApET against the authors' program, run in float64: basis, errors, picks, merged tokens."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.apet import approximation_errors, farthest_tokens

from . import calls

CASES = ["new_apet_crops", "new_apet_qwen"]


@pytest.mark.parametrize("stem", CASES)
def test_selection(stem, recorded, to_xp):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given["features"] = to_xp(given["features"])
    calls.check(stem, case, sc.published(name, **settings).select(sc.Tokens(**given)))


@pytest.mark.parametrize("stem", [*CASES, "new_apet_video"])
def test_basis_and_errors(stem, recorded, to_xp, to_numpy):
    case = recorded(stem)
    params = case.params
    video = params["model"] == "video"
    x = to_xp(case["features"][:, 1:] if video else case["features"])
    first = tuple(case["first"].tolist()) if case["first"].ndim else int(case["first"])
    basis = farthest_tokens(x, params["basis"], first)
    np.testing.assert_array_equal(to_numpy(basis), case["basis"])
    errors = to_numpy(approximation_errors(x, basis, params["ridge"]))
    np.testing.assert_allclose(errors, case["errors"], rtol=0, atol=1e-8 * case["errors"].max())


def test_video_llava(recorded, to_xp, to_numpy):
    case = recorded("new_apet_video")
    params = case.params
    k, b = params["k"], params["basis"]
    x = case["features"][:, 1:]  # without the class token, which the program keeps in front
    method = sc.published(
        "apet", keep=k + b, basis=b, first=tuple(case["first"].tolist()), model="video"
    )
    chosen = method.select(sc.Tokens(features=to_xp(x)))
    picks = to_numpy(chosen.indices)
    np.testing.assert_array_equal(picks[:, :k], case["order"])
    np.testing.assert_array_equal(picks[:, k:], case["basis"])
    merged = to_numpy(chosen.merge(to_xp(x)))
    by_place = np.argsort(np.argsort(picks, axis=-1), axis=-1)
    merged = np.take_along_axis(merged, by_place[..., None], axis=1)
    np.testing.assert_allclose(merged, case["merged"][:, 1:], rtol=1e-8, atol=1e-10)
