"""The host's attention received where heads ask one after the other."""

import sys
import threading

import numpy as np
import pytest

from secateur.backends import lending
from secateur.backends.host import received
from secateur.core.attention import attention_received

HEADS, LENGTH, COUNT = 4, 3000, 70


def asked(groups, batch=()):
    dice = np.random.default_rng(groups)
    queries = dice.normal(size=(*batch, HEADS, COUNT, 8)).astype(np.float32)
    return queries, dice.normal(size=(*batch, groups, LENGTH, 8)).astype(np.float32)


def more(batch=()):
    dice = np.random.default_rng(9)
    yield {}
    yield {"scale": 0.5, "query_weights": dice.random((*batch, COUNT)).astype(np.float32)}
    yield {"positions": np.sort(dice.integers(0, LENGTH, (*batch, COUNT)), axis=-1)}
    yield {"key_mask": dice.random((*batch, LENGTH)) < 0.7}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("groups", "batch"), [(4, ()), (2, ()), (1, (2,))])
def test_heads_apart_give_what_the_definition_gives(monkeypatch, threads, groups, batch):
    monkeypatch.setattr(lending, "hands", lambda work: threads)
    queries, keys = asked(groups, batch)
    for given in more(batch):
        found = received.attention_received(queries, keys, **given)
        wanted = attention_received.reference(queries, keys, **given)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7)


def test_many_queries_do_not_read_all_keys_for_a_few_at_a_time(monkeypatch):
    """A large picture's patches among themselves: it was twelve seconds where one is enough."""
    read, plain = [], received.product

    def noted(x, y):
        read.append(y.size)
        return plain(x, y)

    monkeypatch.setattr(received, "product", noted)
    dice = np.random.default_rng(0)
    queries, keys = (dice.normal(size=(16, n, 4)).astype(np.float32) for n in (300, 5184))
    received.attention_received(queries, keys)
    assert sum(read) <= 4 * keys.size


def test_the_user_s_threads_are_as_they_were_after_several_shared_the_work(monkeypatch):
    """Nobody but the first thread to ask could set OpenBLAS, and the last one restores it."""
    blas, _ = lending._libraries("torch" in sys.modules, "scipy.linalg" in sys.modules)
    before = [each.num_threads for each in blas]
    for each in blas:
        lending._set(each, 2)
    monkeypatch.setattr(lending, "hands", lambda work: 2)
    within = []
    plain = received.product

    def noted(x, y):
        within.append([each.num_threads for each in blas])
        return plain(x, y)

    monkeypatch.setattr(received, "product", noted)
    try:
        for _ in range(5):
            received.attention_received(*asked(HEADS))
            assert [each.num_threads for each in blas] == [2] * len(blas)
    finally:
        for each, threads in zip(blas, before, strict=True):
            lending._set(each, threads)
    assert blas
    assert {count for counts in within for count in counts} == {1}


def test_a_thread_that_comes_second_is_limited_too():
    blas, _ = lending._libraries("torch" in sys.modules, "scipy.linalg" in sys.modules)
    before = [each.num_threads for each in blas]
    found = []

    def other():
        for each in blas:
            lending._set(each, 2)
        with lending._one:
            found.extend(each.num_threads for each in blas)
        found.extend(each.num_threads for each in blas)

    with lending._one:
        pass
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    for each, threads in zip(blas, before, strict=True):
        lending._set(each, threads)
    assert found == [1] * len(blas) + [2] * len(blas)
