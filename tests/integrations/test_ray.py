"""On a real cluster of two nodes on this machine."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

import secateur as sc  # noqa: E402
from secateur.integrations import corpus as alone  # noqa: E402
from secateur.integrations import ray as on_ray  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    settings = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    # That a node is gone is noticed within seconds, not a dozen of them.
    watched = {"initial_delay_ms": 1000, "period_ms": 1000, "timeout_ms": 5000}
    head = {
        "include_dashboard": False,
        "_system_config": {f"health_check_{name}": time for name, time in watched.items()},
    }
    nodes = Cluster(initialize_head=True, head_node_args={**settings, **head})
    nodes.add_node(**{**settings, "num_cpus": 2})
    ray.init(address=nodes.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def faulty(kind: str, folder: Path) -> sc.Method:
    """DivPrune that is slow, and that once, in one worker, ends the whole process.

    Defined in here so that workers get it by value: they cannot import this file.
    """

    @dataclass(frozen=True)
    class Faulty(sc.Method):
        folder: str = ""
        kind: str = ""

        name: ClassVar[str] = "faulty"
        complexity: ClassVar[str] = ""
        reference: ClassVar[str] = ""

        @property
        def needs(self):
            return frozenset({"features"})

        def choose(self, tokens, k):
            time.sleep(0.05)
            if self.kind == "dies":
                try:
                    os.close(os.open(self.folder + "/died", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os._exit(1)
            return sc.method("divprune", keep=self.keep).choose(tokens, k)

    return Faulty(keep=3, folder=str(folder), kind=kind)


def rows(count: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        {"id": i, "features": rng.normal(size=((8, 14)[i % 2], 4)).astype(np.float32).tolist()}
        for i in range(count)
    ]


def write(folder: Path, images: list[dict[str, object]], group: int = 4) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(images), folder / "all.parquet", row_group_size=group)
    return folder


def read(folder: Path) -> dict[int, list[int]]:
    found = [row for p in folder.glob("*.parquet") for row in pq.read_table(p).to_pylist()]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row.get("kept") for row in found}


def test_a_dataset_gets_the_picks_of_one_process(cluster, tmp_path):
    images = rows(50)
    images[7]["features"] = [[float("nan")] * 4] * 8
    method = sc.method("divprune", keep=3)
    dataset = ray.data.from_arrow(pa.Table.from_pylist(images)).repartition(5)
    out = on_ray.prune(dataset, method, batch_size=8, workers=2, bad=str(tmp_path / "bad"))
    got = {row["id"]: list(row["kept"]) for row in out.take_all()}
    here = alone.Pruner(method)(pa.Table.from_pylist(images)).to_pylist()
    assert got == {row["id"]: row["kept"] for row in here if row["error"] is None}
    assert list(read(tmp_path / "bad")) == [7]


def test_errors_stay_in_the_dataset_when_no_folder_is_named(cluster):
    images = rows(4)
    images[2]["features"] = [[float("nan")] * 4] * 8
    dataset = ray.data.from_arrow(pa.Table.from_pylist(images))
    out = on_ray.prune(dataset, sc.method("divprune", keep=3), workers=1).take_all()
    by_id = {row["id"]: row for row in out}
    assert len(by_id) == 4
    assert "NaN" in by_id[2]["error"]
    assert by_id[0]["error"] is None


@pytest.mark.parametrize(
    "faults",
    [
        ("dies", "node"),
        # Half a minute each, on two cores.
        pytest.param(("dies",), marks=pytest.mark.slow),
        pytest.param(("node",), marks=pytest.mark.slow),
    ],
    ids=" and ".join,
)
def test_every_image_is_there_once_whatever_breaks(cluster, tmp_path, faults):
    images = rows(60)
    source = write(tmp_path / "in", images)
    pruner = alone.Pruner(faulty("dies" if "dies" in faults else "", tmp_path))
    extra = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    done = []
    for finished in on_ray.prune_corpus(source, tmp_path / "out", pruner, workers=3):
        done.append(finished)
        if "node" in faults and len(done) == 1:
            cluster.remove_node(extra, allow_graceful=False)
    assert (tmp_path / "died").exists() == ("dies" in faults)
    if "node" not in faults:
        cluster.remove_node(extra)
    assert sum(d.images for d in done) == 60
    method = sc.method("divprune", keep=3)
    here = alone.Pruner(method)(pa.Table.from_pylist(images)).to_pylist()
    assert read(tmp_path / "out") == {row["id"]: row["kept"] for row in here}


def test_an_interrupted_run_is_taken_up(cluster, tmp_path):
    source = write(tmp_path / "in", rows(40))
    pruner = alone.Pruner(faulty("", tmp_path))
    run = on_ray.prune_corpus(source, tmp_path / "out", pruner, workers=2)
    next(run)
    run.close()
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.parquet")}
    assert 1 <= len(written)
    rest = list(on_ray.prune_corpus(source, tmp_path / "out", pruner, workers=2))
    assert len(rest) <= 10 - 1
    assert len(read(tmp_path / "out")) == 40
    for path, stamp in written.items():
        assert path.stat().st_mtime_ns == stamp or str(path) in {d.target for d in rest}


def clumps(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 8))
    return (centres[rng.integers(0, 40, n)] + 0.3 * rng.normal(size=(n, 8))).astype(np.float32)


def test_what_fits_on_one_machine_is_plain_greedy(cluster):
    x = clumps(300)
    picked = on_ray.maximize(x, 20)
    here = sc.maximize(sc.FacilityLocation.from_features(x), 20)
    assert picked.indices.tolist() == here.indices.tolist()
    assert picked.value == float(here.value)
    assert picked.bound == float(here.guarantee)


@pytest.mark.parametrize("rows_of_second_round", [None, 1500])
def test_two_rounds_come_close_to_plain_greedy(cluster, rows_of_second_round):
    x = clumps(3000)
    picked = on_ray.maximize(x, 25, fits=1000, partitions=5, rows=rows_of_second_round, seed=1)
    f = sc.FacilityLocation.from_features(x)
    here = sc.maximize(f, 25)
    assert len(set(picked.indices.tolist())) == 25
    assert picked.value == pytest.approx(float(f.value(picked.indices)), rel=1e-5)
    assert picked.value >= 0.99 * float(here.value)
    assert picked.bound == pytest.approx((1 - 1 / np.e) / 2)
    assert picked.candidates == 125


def test_a_sampled_value_comes_with_its_error(cluster):
    x = clumps(3000)
    full = on_ray.maximize(x, 10, fits=1000, partitions=3)
    sampled = on_ray.maximize(x, 10, fits=1000, partitions=3, evaluate=600)
    assert sampled.indices.tolist() == full.indices.tolist()
    assert full.error == 0
    assert 0 < sampled.error < 0.05 * full.value
    assert abs(sampled.value - full.value) < 2 * sampled.error


def test_points_of_a_dataset_are_numbered_in_its_order(cluster):
    x = clumps(200)
    dataset = ray.data.from_items([{"features": v.tolist()} for v in x], override_num_blocks=7)
    assert on_ray.maximize(dataset, 9).indices.tolist() == on_ray.maximize(x, 9).indices.tolist()


@pytest.mark.parametrize(
    ("x", "k", "words"),
    [
        (np.ones(3), 1, "points"),
        (np.full((3, 2), np.nan), 1, "NaN"),
        (np.ones((3, 2)), 4, "1 .. 3"),
    ],
)
def test_bad_points_are_refused(x, k, words):
    with pytest.raises(ValueError, match=words):
        on_ray.maximize(x, k)
