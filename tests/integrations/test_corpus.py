import json
import os
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

import secateur as sc  # noqa: E402
from secateur.integrations import cells  # noqa: E402
from secateur.integrations.corpus import (  # noqa: E402
    Pruner,
    open_corpus,
    prune_corpus,
    prune_shard,
    shards,
    write_bad,
)


def images(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Images of two sizes with features and attention."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        n = (12, 20)[i % 2]
        rows.append(
            {
                "id": f"image-{i}",
                "features": rng.normal(size=(n, 5)).astype(np.float32).tolist(),
                "attention": rng.random(n).astype(np.float32).tolist(),
            }
        )
    return rows


def corpus(folder: Path, rows: list[dict[str, object]], files: int = 2, group: int = 4) -> Path:
    folder.mkdir()
    for part in range(files):
        table = pa.Table.from_pylist(rows[part::files])
        pq.write_table(table, folder / f"part{part}.parquet", row_group_size=group)
    return folder


def results(folder: Path) -> dict[str, dict[str, object]]:
    found = [row for p in folder.glob("*.parquet") for row in pq.read_table(p).to_pylist()]
    assert len({row["id"] for row in found}) == len(found)
    return {str(row["id"]): row for row in found}


def alone(row: dict[str, object], method: sc.Method) -> sc.Selection:
    return method.select(
        sc.Tokens(
            features=np.asarray(row["features"], dtype=np.float32),
            attention=np.asarray(row["attention"], dtype=np.float32),
        )
    )


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_batch_of_unlike_images_gets_what_each_gets_alone(library):
    pytest.importorskip(library)
    rows = images(7)
    method = sc.method("divprune", keep=4)
    out = Pruner(method, library=library, keep_features=True)(pa.Table.from_pylist(rows))
    assert out.column_names[-5:] == ["kept", "gains", "guarantee", "error", "kept_features"]
    for row, got in zip(rows, out.to_pylist(), strict=True):
        expected = alone(row, method)
        assert got["error"] is None
        assert got["kept"] == np.sort(expected.indices).tolist()
        np.testing.assert_array_equal(
            np.asarray(got["kept_features"], dtype=np.float32),
            np.asarray(row["features"], dtype=np.float32)[got["kept"]],
        )


def test_gains_and_guarantee_come_along_where_a_method_has_them():
    rng = np.random.default_rng(0)
    table = pa.Table.from_pylist(
        [{"vis": rng.normal(size=(30, 4)).tolist(), "text": rng.normal(size=(3, 4)).tolist()}]
    )
    out = Pruner(sc.EADP(keep=5), columns={"features": "vis"})(table).to_pylist()[0]
    assert len(out["gains"]) == 5
    assert 1 - 1 / np.e <= out["guarantee"] <= 1
    assert "vis" not in out


def test_bad_rows_say_why_and_do_not_disturb_their_neighbours():
    rows = images(6)
    rows[1]["features"] = [[1.0, 2.0], [3.0]]
    rows[2]["features"] = None
    rows[4]["features"][0][0] = float("nan")
    rows[3]["features"][1][2] = None
    method = sc.method("divprune", keep=3)
    out = Pruner(method)(pa.Table.from_pylist(rows)).to_pylist()
    assert "unlike length" in out[1]["error"]
    assert "no features" in out[2]["error"]
    assert "NaN" in out[4]["error"]
    assert "missing" in out[3]["error"]
    for i in (0, 5):
        assert out[i]["error"] is None
        assert out[i]["kept"] == np.sort(alone(rows[i], method).indices).tolist()


def test_a_missing_column_is_refused_by_name():
    table = pa.Table.from_pylist([{"features": [[1.0]], "id": 1}])
    with pytest.raises(ValueError, match=r"EADP needs a column 'text', the table has features, id"):
        Pruner(sc.EADP(keep=1))(table)


def test_a_corpus_is_pruned_shard_by_shard(tmp_path):
    rows = images(22)
    rows[5]["features"] = [[1.0], [2.0, 3.0]]
    method = sc.method("divprune", keep=3)
    source = corpus(tmp_path / "in", rows)
    done = list(prune_corpus(source, tmp_path / "out", Pruner(method), batch_size=3))
    assert len(done) == len(shards(source, tmp_path / "out")) == 6
    assert sum(d.images for d in done) == 21
    assert sum(d.bad for d in done) == 1
    got = results(tmp_path / "out")
    assert set(got) == {f"image-{i}" for i in range(22) if i != 5}
    bad = results(tmp_path / "out" / "_bad")
    assert list(bad) == ["image-5"]
    assert "unlike length" in str(bad["image-5"]["error"])
    for i in (0, 1, 21):
        assert got[f"image-{i}"]["kept"] == np.sort(alone(rows[i], method).indices).tolist()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    source = corpus(tmp_path / "in", images(16))
    pruner = Pruner(sc.method("divprune", keep=3))
    first = next(iter(prune_corpus(source, tmp_path / "out", pruner)))
    stamp = os.stat(first.target).st_mtime_ns
    rest = list(prune_corpus(source, tmp_path / "out", pruner))
    assert len(rest) == 3
    assert os.stat(first.target).st_mtime_ns == stamp
    assert len(results(tmp_path / "out")) == 16
    assert list(prune_corpus(source, tmp_path / "out", pruner)) == []


def test_a_shard_that_fails_midway_leaves_nothing_that_counts(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in", images(4), files=1)
    pruner = Pruner(sc.method("divprune", keep=3))
    _, (shard,) = open_corpus(source, tmp_path / "out", pruner)
    calls = []

    def fails_later(self, table):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return original(self, table)

    original = Pruner.__call__
    monkeypatch.setattr(Pruner, "__call__", fails_later)
    with pytest.raises(MemoryError):
        prune_shard(shard, pruner, batch_size=2)
    assert not Path(shard.target).exists()
    monkeypatch.undo()
    assert prune_shard(shard, pruner, batch_size=2).images == 4


def test_a_shard_whose_rows_are_all_bad_is_done(tmp_path):
    rows = images(2)
    for row in rows:
        row["features"] = [[1.0], [2.0, 3.0]]
    source = corpus(tmp_path / "in", rows, files=1)
    pruner = Pruner(sc.method("divprune", keep=3))
    assert [d.bad for d in prune_corpus(source, tmp_path / "out", pruner)] == [2]
    assert list(prune_corpus(source, tmp_path / "out", pruner)) == []


def test_other_settings_on_the_same_results_are_refused(tmp_path):
    source = corpus(tmp_path / "in", images(4), files=1)
    list(prune_corpus(source, tmp_path / "out", Pruner(sc.method("divprune", keep=3))))
    assert json.loads((tmp_path / "out" / "_secateur.json").read_text())["method"]["keep"] == 3
    with pytest.raises(ValueError, match="other settings"):
        list(prune_corpus(source, tmp_path / "out", Pruner(sc.method("divprune", keep=4))))


def test_no_parquet_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        shards(tmp_path, tmp_path / "out")


def test_bad_rows_written_twice_are_there_once(tmp_path):
    rows = pa.Table.from_pylist([{"id": "a", "error": "because"}])
    write_bad(rows, tmp_path)
    write_bad(rows, tmp_path)
    assert [pq.read_table(p).to_pylist() for p in tmp_path.glob("*.parquet")] == [
        [{"id": "a", "error": "because"}]
    ]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_files_whose_paths_look_alike_do_not_overwrite_each_other(tmp_path):
    rows = images(40)
    names = ["a/b", "a-b", "_a/b", "%5Fa/b", ".a", "_bad/a"]
    for number, name in enumerate(names):
        write(tmp_path / "in" / f"{name}.parquet", rows[6 * number : 6 * number + 6])
    done = list(prune_corpus(tmp_path / "in", tmp_path / "out", Pruner(sc.DivPrune(keep=3))))
    assert len({each.target for each in done}) == len(names)
    table = pq.read_table(tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == sorted(row["id"] for row in rows[:36])


def test_results_are_one_table_without_the_bad_rows(tmp_path):
    rows = images(8)
    rows[3]["features"] = None
    source = corpus(tmp_path / "in", rows)
    list(prune_corpus(source, tmp_path / "out", Pruner(sc.DivPrune(keep=3))))
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 7
    assert table["kept"].null_count == 0


def test_another_source_into_the_same_target_is_refused(tmp_path):
    pruner = Pruner(sc.DivPrune(keep=3))
    first = corpus(tmp_path / "in", images(8))
    list(prune_corpus(first, tmp_path / "out", pruner))
    record = json.loads((tmp_path / "out" / "_secateur.json").read_text())
    assert record["source"] == str(first)
    assert set(record["files"]) == {"part0", "part1"}
    other = corpus(tmp_path / "other", images(8, seed=1))
    with pytest.raises(ValueError, match="another source"):
        list(prune_corpus(other, tmp_path / "out", pruner))
    write(tmp_path / "named" / "z.parquet", images(4))
    with pytest.raises(ValueError, match="another source"):
        list(prune_corpus(tmp_path / "named", tmp_path / "out", pruner))
    with pytest.raises(ValueError, match="other settings"):
        list(prune_corpus(first, tmp_path / "out", Pruner(sc.DivPrune(keep=3), {"text": "id"})))
    write(first / "more.parquet", images(4, seed=2))
    assert sum(each.images for each in prune_corpus(first, tmp_path / "out", pruner)) == 4


def test_a_target_within_its_source_is_refused(tmp_path):
    source = corpus(tmp_path / "in", images(4))
    for target in (source, source / "out", tmp_path):
        with pytest.raises(ValueError, match="target: expected a folder apart"):
            list(prune_corpus(source, target, Pruner(sc.DivPrune(keep=3))))


def test_what_a_killed_run_half_wrote_is_removed(tmp_path):
    source = corpus(tmp_path / "in", images(4))
    stale = tmp_path / "out" / "part0-00000.parquet.77.part"
    stale.parent.mkdir()
    stale.write_bytes(b"half")
    list(prune_corpus(source, tmp_path / "out", Pruner(sc.DivPrune(keep=3))))
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_shortfall_is_an_error(tmp_path, monkeypatch):
    source = corpus(tmp_path / "in", images(8))
    pruner = Pruner(sc.DivPrune(keep=3))
    done = list(prune_corpus(source, tmp_path / "out", pruner))
    pq.write_table(pq.read_table(done[0].target).slice(1), done[0].target)
    with pytest.raises(ValueError, match=r"4 images went in from .*, 3 came out"):
        list(prune_corpus(source, tmp_path / "out", pruner))
    original = Pruner.__call__
    monkeypatch.setattr(Pruner, "__call__", lambda self, table: original(self, table).slice(1))
    with pytest.raises(ValueError, match="4 images went in, 3 came out"):
        list(prune_corpus(source, tmp_path / "again", pruner))


@pytest.mark.parametrize(("many", "woken"), [(3, ["numpy"]), (4, [])])
def test_many_images_are_worth_loading_numba(tmp_path, monkeypatch, many, woken):
    seen = []
    monkeypatch.setattr("secateur.integrations.corpus.wake", seen.append)
    monkeypatch.setattr("secateur.integrations.corpus.MANY", many)
    source = corpus(tmp_path / "in", images(4))
    assert len(list(prune_corpus(source, tmp_path / "out", Pruner(sc.DivPrune(keep=3))))) == 2
    assert seen == woken


def test_a_corrupt_file_is_named(tmp_path):
    source = corpus(tmp_path / "in", images(4))
    (source / "broken.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be read as Parquet"):
        open_corpus(source, tmp_path / "out", Pruner(sc.DivPrune(keep=3)))


def test_a_file_that_cannot_be_read_to_its_end_is_named_and_not_done(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    table = pa.Table.from_pylist(images(200))
    pq.write_table(table, source / "torn.parquet", compression="gzip")
    torn = bytearray((source / "torn.parquet").read_bytes())
    torn[len(torn) // 2 : len(torn) // 2 + 2000] = bytes(2000)
    (source / "torn.parquet").write_bytes(torn)
    with pytest.raises(ValueError, match=r"torn\.parquet cannot be read as Parquet"):
        list(prune_corpus(source, target, Pruner(sc.DivPrune(keep=3)), batch_size=8))
    assert not [*target.glob("*.parquet")]


def test_what_cannot_be_pruned_is_refused_before_the_first_row(tmp_path):
    source = corpus(tmp_path / "in", images(4))
    with pytest.raises(ValueError, match="FastV prunes inside a language model"):
        Pruner(sc.FastV(keep=3))
    with pytest.raises(ValueError, match=r"part0\.parquet: features: expected nested .* string"):
        open_corpus(source, tmp_path / "out", Pruner(sc.DivPrune(keep=3), {"features": "id"}))
    assert not (tmp_path / "out").exists()


def test_no_tokens_are_told_as_that():
    rows = images(2)
    rows[1]["features"] = []
    out = Pruner(sc.DivPrune(keep=3))(pa.Table.from_pylist(rows)).to_pylist()
    assert out[1]["error"] == "unreadable: the list is empty"


@pytest.mark.parametrize("grid", [True, 4, [4], [1, 2, 2], [[2, 2]]])
def test_a_grid_that_is_none_spoils_its_row_alone(grid):
    table = pa.table({"features": [np.eye(4).tolist()], "grid": [grid]})
    pruned = Pruner(sc.DivPrune(keep=2))(table)
    assert pruned["error"].to_pylist() == [f"unreadable: grid: expected (h, w), got {grid!r}"]


def as_lists(x):
    return pa.array(x.tolist(), pa.list_(pa.list_(pa.float32())))


def as_fixed_lists(x):
    width = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[2])
    return pa.FixedSizeListArray.from_arrays(width, x.shape[1])


def as_tensors_of_ray(x):
    tensors = pytest.importorskip("ray.data.extensions").ArrowTensorArray
    return tensors.from_numpy(x)


def test_tensors_of_ray_are_read_as_a_whole():
    x = np.random.default_rng(0).standard_normal((9, 30, 4)).astype(np.float32)
    for each in (x, x > 0, x.astype(np.float16)):
        stored = as_tensors_of_ray(each)
        parts = pa.chunked_array([stored.slice(2, 3), stored.slice(5)])
        np.testing.assert_array_equal(cells.block(parts), each[2:])
    stored = as_tensors_of_ray(x)
    assert cells.block(pa.chunked_array([stored, pa.nulls(1, stored.type)])) is None


@pytest.mark.parametrize(
    "stored",
    [as_lists, as_fixed_lists, pa.FixedShapeTensorArray.from_numpy_ndarray, as_tensors_of_ray],
)
@pytest.mark.parametrize("name", ["divprune", "topk"])
def test_columns_taken_whole_give_what_rows_give(name, stored):
    dice = np.random.default_rng(0)
    x = dice.standard_normal((9, 30, 4)).astype(np.float32)
    given = {"features": stored(x), "attention": pa.array(dice.random((9, 30)).tolist())}
    pruner = Pruner(sc.method(name, keep=5), keep_features=True)
    # A slice of a table has its arrays begin elsewhere.
    whole = pruner(pa.table(given).slice(2))
    alone = [pruner(pa.table(given).slice(place, 1)) for place in range(2, 9)]
    assert whole.num_rows == 7
    rows = pa.concat_tables(alone)
    assert whole.drop_columns("gains").equals(rows.drop_columns("gains"))
    for gains, own in zip(whole["gains"].to_pylist(), rows["gains"].to_pylist(), strict=True):
        assert gains == (own if own is None else pytest.approx(own, rel=1e-12))
    assert whole["error"].null_count == 7
    for row, kept, features in zip(x[2:], whole["kept"], whole["kept_features"], strict=True):
        np.testing.assert_array_equal(features.as_py(), row[kept.as_py()])
