"""MMTok, OTPrune, SCOPE and IDPruner against their authors' programs, run in float64."""

from __future__ import annotations

import numpy as np
import pytest

import secateur as sc

from . import calls

CASES = [
    "new_mmtok_crops",
    "new_mmtok_padding",
    "new_mmtok_qwen",
    "new_otprune_half",
    "new_otprune_tenth",
    "new_otprune_wide",
    "new_scope_add",
    "new_scope_crops",
    "new_scope_multi",
    "new_idpruner_batched",
    "new_idpruner_half",
]


def asked(recorded, stem, convert=np.asarray):
    case = recorded(stem)
    name, settings, given = calls.call(stem, case)
    given = {k: convert(x) if isinstance(x, np.ndarray) else x for k, x in given.items()}
    return case, sc.published(name, **settings), sc.Tokens(**given)


@pytest.mark.parametrize("stem", CASES)
def test_picks_in_order(recorded, to_xp, to_numpy, stem):
    case, method, tokens = asked(recorded, stem, to_xp)
    chosen = method.select(tokens)
    np.testing.assert_array_equal(to_numpy(chosen.indices), case["order"])
    np.testing.assert_array_equal(to_numpy(chosen.sorted()), case["kept"])


@pytest.mark.parametrize("backend", ["reference", "numpy", "numba"])
@pytest.mark.parametrize("stem", CASES)
def test_as_the_calls_have_it(recorded, stem, backend):
    case, method, tokens = asked(recorded, stem)
    calls.check(stem, case, method.select(tokens, backend=backend))


@pytest.mark.parametrize("algorithm", ["naive", "lazy", "incremental"])
@pytest.mark.parametrize("stem", [s for s in CASES if "idpruner" not in s and "padding" not in s])
def test_by_every_algorithm(recorded, stem, algorithm):
    case, method, tokens = asked(recorded, stem)
    chosen = sc.maximize(method.objective(tokens), len(case["order"].T), algorithm)
    np.testing.assert_array_equal(chosen.indices, case["order"])


@pytest.mark.parametrize("stem", [s for s in CASES if "mmtok" in s or "otprune" in s])
def test_values_after_each_pick_and_what_is_certain(recorded, stem):
    case, method, tokens = asked(recorded, stem)
    chosen = method.select(tokens)
    np.testing.assert_allclose(np.cumsum(chosen.gains, axis=-1), case["value"], rtol=1e-8)
    np.testing.assert_allclose(chosen.value, case["value"][..., -1], rtol=1e-8)
    assert (np.asarray(chosen.guarantee) > 1 - 1 / np.e).all()


@pytest.mark.parametrize("stem", ["new_otprune_half", "new_otprune_tenth", "new_otprune_wide"])
def test_the_diagonal_of_otprune(recorded, stem):
    case, method, tokens = asked(recorded, stem)
    f = method.objective(tokens)
    np.testing.assert_allclose(f.diagonal(), case["diagonal"], rtol=1e-10)
    assert f.factors.shape[-1] == min(case["features"].shape)


def test_the_share_of_otprune_is_rounded_as_published(recorded):
    case = recorded("new_otprune_tenth")
    tokens = sc.Tokens(features=case["features"])
    assert sc.published("otprune").select(tokens).indices.tolist() == case["order"].tolist()
    assert sc.published("otprune").budget(576) == 56
    assert sc.OTPrune(keep=0.0999).budget(1000) == 99
    assert sc.published("otprune", keep=0.0999).budget(1000) == 100
