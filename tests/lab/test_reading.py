"""The reader of molecules, with weights that nobody trained."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import secateur as sc  # noqa: E402

REAL = Path(__file__).parents[2] / "benchmarks" / "real"
if not REAL.exists():
    pytest.skip("benchmarks are not part of a release", allow_module_level=True)

WORDS, WIDTH, LAYERS = 12, 512, 6
INNER = 64


@pytest.fixture
def molecules(monkeypatch):
    monkeypatch.syspath_prepend(str(REAL))
    import molecules

    yield molecules
    for name in ("molecules", "packages", "reading"):
        sys.modules.pop(name)


@pytest.fixture
def reader(molecules, tmp_path):
    dice = np.random.default_rng(0)
    square, line = (WIDTH, WIDTH), (WIDTH,)
    shapes = [(WORDS, WIDTH)]
    for _ in range(LAYERS):
        shapes += [square, line] * 8
        shapes += [(WIDTH, INNER), (INNER,), (INNER, WIDTH), line, *[line] * 6]
    shapes += [(WIDTH, WORDS), (WORDS,)]
    arrays = {
        f"v{i}": (dice.normal(size=shape) * (4 / WIDTH) ** 0.5).astype(np.float32)
        for i, shape in enumerate(shapes)
    }
    for i, shape in enumerate(shapes):
        if shape == line and (i - 1) % 26 >= 20:
            arrays[f"v{i}"] += 1 - (i - 1) % 2  # what layers are normed by
    arrays["v158"][1] += 3  # so that readings end
    np.savez(tmp_path / "decoder.npz", **arrays)
    told = {"index_word": {i: chr(97 + i) for i in range(WORDS)}}
    told["word_index"] = {"<start>": 0, "<end>": 1}
    (tmp_path / "words.json").write_text(json.dumps(told))
    return molecules.Reader(tmp_path / "decoder.npz")


def images(count=3):
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, 256, 512))).float()


def test_what_no_layer_sees_is_not_there(reader):
    x, at = images(), torch.arange(256).repeat(3, 1)
    kept = torch.stack([torch.randperm(256)[:20].sort().values for _ in range(3)])
    fewer = torch.gather(x, 1, kept[..., None].expand(-1, -1, 512))
    seen = torch.zeros(3, LAYERS, 256, dtype=torch.bool)
    seen.scatter_(2, kept[:, None].expand(-1, LAYERS, -1), True)
    one, other = reader.read(fewer, kept, 9), reader.read(x, at, 9, seen)
    assert one.ids == other.ids
    assert one.ids != reader.read(x, at, 9).ids
    for ids in (one.ids, [[0, 3, 5, 1]] * 3):
        judged, masked = reader.judge(fewer, kept, ids), reader.judge(x, at, ids, seen)
        assert judged[0].tolist() == masked[0].tolist()
        torch.testing.assert_close(judged[1], masked[1], rtol=1e-4, atol=1e-4)
    assert reader.judge(x, at, other.ids, seen)[0].all()


def test_layers_before_a_cut_see_everything(reader):
    x, at = images(), torch.arange(256).repeat(3, 1)
    seen = torch.ones(3, LAYERS, 256, dtype=torch.bool)
    whole = reader.read(x, at, 9)
    assert reader.read(x, at, 9, seen).ids == whole.ids
    seen[:, 2:, 8:] = False
    some = reader.read(x, at, 9, seen)
    torch.testing.assert_close(some.shallow, whole.shallow)
    assert (some.first[:, :8].sum(1) > whole.first[:, :8].sum(1)).all()


def test_methods_between_layers_leave_what_their_first_word_attends_to(molecules, reader):
    x = images(2)
    tokens = [sc.Tokens(features=each.double().numpy()) for each in x]
    rules = molecules.between()

    def seen(name, k):
        own = [rules[name](each, k, i) for i, each in enumerate(tokens)]
        return reader.seen(x, molecules._each(own))

    fast = seen("FastV", 16)
    assert fast[:, :2].all()
    assert (fast[:, 2:].sum(-1) == 16).all()
    whole = reader.read(x, torch.arange(256).repeat(2, 1), 1)
    # One step: of the first word, in the first layer, then the mean over two of them.
    places = [fast[row, 5].nonzero()[:, 0].tolist() for row in range(2)]
    asked = []
    reader.seen(x, lambda after, ahead, row, q, k, left: asked.append((after, ahead, row, q, k)))
    assert [each[:3] for each in asked[:8]] == [
        *((1, False, row) for row in range(2)),
        *((1, True, row) for row in range(2)),
        *((2, False, row) for row in range(2)),
        *((2, True, row) for row in range(2)),
    ]
    for row in range(2):
        _, _, _, q, keys = asked[row]
        first = (q @ keys.mT / 8).softmax(-1).mean(0)[0]
        torch.testing.assert_close(first, whole.shallow[row], rtol=1e-4, atol=1e-6)
        _, _, _, q, keys = asked[4 + row]
        second = (q @ keys.mT / 8).softmax(-1).mean(0)[0]
        assert places[row] == second.topk(16).indices.sort().values.tolist()

    # The next layer is asked, with the query that it would look with.
    pyramid = seen("PyramidDrop", 16)
    for row in range(2):
        _, _, _, q, keys = asked[6 + row]
        third = (q @ keys.mT / 8).softmax(-1).mean(0)[0]
        places = pyramid[row, 2].nonzero()[:, 0].tolist()
        assert places == third.topk(101).indices.sort().values.tolist()
    assert pyramid.sum(-1).tolist() == [[256, 256, 101, 40, 16, 16]] * 2
    assert (pyramid[:, 1:] <= pyramid[:, :-1]).all()
    random = seen("Random, after 2 layers", 16)
    chosen = sc.Random(keep=16, seed=1).select(tokens[1]).sorted()
    assert random[1, 5].nonzero()[:, 0].tolist() == chosen.tolist()


def test_what_is_read_as_from_all_tokens_is_not_read_again(
    molecules, reader, tmp_path, monkeypatch
):
    monkeypatch.setattr(molecules, "FOLDER", tmp_path)
    monkeypatch.setattr(molecules, "mean_erank", lambda: 100.0)
    x = images(4).numpy()
    monkeypatch.setattr(molecules, "chunk", lambda start: {"tokens": x})
    whole = molecules.read_all(reader, 0, x)
    names = ("Random", "FastV")
    molecules.run(reader, "read", 0, 252, names)
    path = molecules.stored("read", 252, 0)
    read = json.loads(path.read_text())
    path.unlink()
    molecules.run(reader, "judged", 0, 252, names)
    judged = json.loads(molecules.stored("judged", 252, 0).read_text())
    asked = []
    texts = molecules.texts
    monkeypatch.setitem(
        molecules.STAGES, "read", lambda reader, jobs: asked.extend(jobs) or texts(reader, jobs)
    )
    molecules.run(reader, "read", 0, 252, names)
    assert json.loads(path.read_text()) == read
    same = sum(each[0] for name in names for each in judged[name])
    assert 0 < same < 8
    assert len(asked) == 8 - same
    for name in names:
        for place, (alike, _) in enumerate(judged[name]):
            assert alike == (read[name][place] == reader.text(whole["ids"][place]))
