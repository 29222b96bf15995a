"""Servers that share a cache of encoded images keep to their own method's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small import engine
from test_equal import SIZES, Request, written

import secateur as sc
from secateur.integrations.vllm import identity
from secateur.integrations.vllm.requests import Instructed

METHODS = [
    sc.TopK(keep=9),
    sc.TopK(keep=12),
    sc.DivPrune(keep=9),
    sc.AgilePruner(keep=9, mean_erank=10.0),
    sc.AgilePruner(keep=9, mean_erank=sc.Calibration(10.0, 2.0, 30)),
    sc.AgilePruner(keep=9, mean_erank=sc.Calibration(11.0, 2.0, 30)),
    sc.AgilePruner(keep=9, mean_erank=10.0, tau_max=0.2),
]


def test_whatever_decides_a_choice_is_in_the_name(monkeypatch):
    names = [identity.digest(method) for method in METHODS]
    assert len(set(names)) == len(METHODS)
    assert names == [identity.digest(replace(method)) for method in METHODS]
    monkeypatch.setattr(identity, "release", lambda package: "99.0")
    assert not set(names) & {identity.digest(method) for method in METHODS}


def test_methods_of_others_are_told_apart():
    def made():
        class Mine(sc.TopK):
            pass

        return Mine(keep=9)

    mine = made()
    assert identity.digest(mine) != identity.digest(sc.TopK(keep=9))
    assert identity.digest(mine) == identity.digest(made())


def test_names_that_clients_give_images_are_the_methods_own():
    class Last:
        def apply(self, inputs, timing_ctx):
            return inputs.mm_uuid_items

    class Processor(Instructed, Last):
        info = SimpleNamespace(identity="secateur-1234")

    from vllm.multimodal.processing import ProcessorInputs

    given = ProcessorInputs([], {}, {"image": ["street", None]})
    assert Processor().apply(given, None) == {"image": ["secateur-1234-street", None]}


@pytest.mark.parametrize("name", ["llava"])
def test_two_methods_over_one_store(checkpoints, tmp_path, name):
    checkpoint = checkpoints(name)
    store = {
        "ec_connector": "ECExampleConnector",
        "ec_role": "ec_both",
        "ec_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    requests = [Request(checkpoint, [size], seed=n) for n, size in enumerate(SIZES)]
    stored = []
    for method in (sc.TopK(keep=9), sc.DivPrune(keep=9)):
        with engine(checkpoint.folder, method, checkpoint.kind, ec_transfer_config=store) as llm:
            got = written(llm, requests)
            del llm
        assert got == [each.expected(method) for each in requests], method
        stored.append({each.parent.name for each in Path(tmp_path).rglob("*.safetensors")})
    assert len(stored[0]) == len(requests)
    assert len(stored[1]) == 2 * len(requests)
