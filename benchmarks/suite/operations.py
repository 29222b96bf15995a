"""Time and peak memory of the core's operations, by driver, size, batch and dtype.

`make bench` runs them. A driver whose library is missing is skipped.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

import secateur as sc
from secateur.core.attention import attention_received
from secateur.core.similarity import cosine_similarity
from secateur.core.threshold import threshold_scan

from .images import photo_like, relevance_like

DRIVERS = ["numba", "numpy", "torch"]
SIZES = [(576, 64, 1), (576, 64, 16), (2304, 320, 1)]
DTYPES = ["float32", "float64"]


def given(driver: str, *arrays: np.ndarray) -> list[Any]:
    """Arrays of the library that a driver serves."""
    if importlib.util.find_spec(driver) is None:
        raise NotImplementedError(f"{driver} is not installed")
    if driver != "torch":
        return list(arrays)
    import torch

    return [torch.from_numpy(each) for each in arrays]


def images(n: int, batch: int, width: int = 256) -> np.ndarray:
    x = np.stack([photo_like(n, width, seed) for seed in range(batch)])
    return x if batch > 1 else x[0]


class FacilityLocation:
    """Weighted greedy from a matrix."""

    params = (DRIVERS, SIZES, DTYPES)
    param_names = ("driver", "N, k, batch", "dtype")
    timeout = 120

    def setup(self, driver: str, size: tuple[int, int, int], dtype: str) -> None:
        n, self.k, batch = size
        s = cosine_similarity(images(n, batch).astype(dtype))
        s, w = given(driver, s, relevance_like(n).astype(dtype))
        self.f, self.driver = sc.FacilityLocation(s, w, check_finite=False), driver
        self.time_maximize(driver, size, dtype)

    def time_maximize(self, *_: Any) -> None:
        sc.maximize(self.f, self.k, backend=self.driver)

    def peakmem_maximize(self, *_: Any) -> None:
        sc.maximize(self.f, self.k, backend=self.driver)


class FacilityLocationFeatures:
    """Weighted greedy from features, without the matrix."""

    params = (DRIVERS, [(2304, 320, 1), (6144, 384, 1)])
    param_names = ("driver", "N, k, batch")
    timeout = 120

    def setup(self, driver: str, size: tuple[int, int, int]) -> None:
        n, self.k, batch = size
        x, w = given(driver, images(n, batch), relevance_like(n).astype(np.float32))
        self.f = sc.FacilityLocation.from_features(x, w, check_finite=False)
        self.driver = driver
        sc.maximize(sc.FacilityLocation.from_features(x[:600], w[:600]), 4, backend=driver)

    def time_maximize(self, *_: Any) -> None:
        sc.maximize(self.f, self.k, backend=self.driver)

    def peakmem_maximize(self, *_: Any) -> None:
        sc.maximize(self.f, self.k, backend=self.driver)


class Diversity:
    """Greedy log-determinant and farthest-first."""

    params = (DRIVERS, SIZES)
    param_names = ("driver", "N, k, batch")
    timeout = 120

    def setup(self, driver: str, size: tuple[int, int, int]) -> None:
        n, self.k, batch = size
        x = images(n, batch)
        s = cosine_similarity(x)
        x, s, d = given(driver, x, s, 1.0 - s)
        self.kernel = sc.LogDeterminant(s, check_finite=False)
        self.distance = sc.Dispersion(d, check_finite=False)
        self.features = sc.Dispersion.from_features(x, check_finite=False)
        for f in (self.kernel, self.distance, self.features):
            sc.maximize(f, 2, backend=driver)

    def time_determinant(self, driver: str, _: Any) -> None:
        sc.maximize(self.kernel, self.k, backend=driver)

    def time_farthest_first(self, driver: str, _: Any) -> None:
        sc.maximize(self.distance, self.k, backend=driver)

    def time_farthest_first_from_features(self, driver: str, _: Any) -> None:
        sc.maximize(self.features, self.k, backend=driver)


class Tokens:
    """Operations on the features of one image."""

    params = (DRIVERS, [(576, 1024), (2304, 1024)])
    param_names = ("driver", "N, D")
    timeout = 120

    def setup(self, driver: str, size: tuple[int, int]) -> None:
        n, width = size
        words = photo_like(77, width, seed=9)
        self.x, self.words, self.attention = given(
            driver, photo_like(n, width), words, relevance_like(n)
        )
        self.time_cosine_similarity(driver, size)
        self.time_threshold_scan(driver, size)

    def time_cosine_similarity(self, driver: str, _: Any) -> None:
        cosine_similarity(self.x, backend=driver)

    def time_dense_relevance(self, driver: str, _: Any) -> None:
        with sc.backend(driver):
            sc.dense_relevance(self.x, self.words, check_finite=False)

    def time_effective_rank(self, driver: str, _: Any) -> None:
        with sc.backend(driver):
            sc.effective_rank(self.x, check_finite=False)

    def time_threshold_scan(self, driver: str, _: Any) -> None:
        k = len(self.x) // 9
        threshold_scan(self.x, self.attention, k, np.asarray(0.01), 1.0, backend=driver)


class Attention:
    """Attention received, from queries and keys of 16 heads."""

    params = (["numpy", "torch"], [(1, 577), (577, 577), (32, 2880), (5184, 5184)])
    param_names = ("driver", "queries, keys")

    def setup(self, driver: str, size: tuple[int, int]) -> None:
        dice = np.random.default_rng(0)
        q, k = (dice.standard_normal((16, count, 64)).astype(np.float32) for count in size)
        self.q, self.k = given(driver, q, k)

    def time_attention_received(self, driver: str, _: Any) -> None:
        attention_received(self.q, self.k, backend=driver)


class PatchEntropy:
    """A photograph of 3840 x 2160 pixels in patches of 28."""

    params = (["numba", "numpy"], ["uint8", "float32"])
    param_names = ("driver", "dtype")

    def setup(self, driver: str, dtype: str) -> None:
        dice = np.random.default_rng(0)
        picture = dice.integers(0, 256, (2160, 3840, 3)) // dice.integers(1, 9, (2160, 3840, 1))
        (self.picture,) = given(driver, picture.astype(dtype))
        self.time_patch_entropy(driver, dtype)

    def time_patch_entropy(self, driver: str, _: Any) -> None:
        with sc.backend(driver):
            sc.patch_entropy(self.picture, 28)
