"""What facility location needs when the matrix of similarities could not be held."""

import math

import numpy as np
import pytest

import secateur as sc
from secateur.testing import assert_selection


@pytest.mark.slow
def test_fifty_thousand_tokens_within_a_gigabyte():
    resource = pytest.importorskip("resource", reason="reads the peak memory as Linux counts it")
    x = np.random.default_rng(0).normal(size=(50_000, 64)).astype(np.float32)
    sc.maximize(sc.FacilityLocation.from_features(x[:100]), 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    picks = sc.maximize(sc.FacilityLocation.from_features(x), 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    assert_selection(picks, 100)
    assert float(picks.guarantee) >= 1 - 1 / math.e
