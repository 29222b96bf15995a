import json

import numpy as np
import pytest

import secateur as sc
from secateur.core.complexity import one_picture


def crops(count, seed=0):
    rng = np.random.default_rng(seed)
    return [sc.Tokens(features=rng.normal(size=(12, 6))) for _ in range(count)]


def test_a_picture_of_five_crops_is_one_image_however_often_it_is_looked_at():
    running = sc.RunningCalibration()
    running.see(sc.Tokens(features=np.eye(4)))
    with one_picture():
        for _ in range(2):
            for each in crops(5):
                running.see(each)
    assert running.so_far.images == 2
    mean = np.mean([float(sc.effective_rank(each.features)) for each in crops(5)])
    np.testing.assert_allclose(running.so_far.erank, (4 + mean) / 2)


def test_a_model_that_cuts_pictures_counts_each_once():
    torch = pytest.importorskip("torch")
    from secateur.integrations.choosing import choose
    from secateur.integrations.encoded import Part, Visual

    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(60, 6)))
    attention = torch.from_numpy(rng.random(60))
    parts = [
        Part(
            grid=(3, 4),
            index=np.arange(12 * n, 12 * n + 12),
            attention=attention[12 * n : 12 * n + 12],
        )
        for n in range(5)
    ]
    visual = Visual(modality="image", features=features, parts=parts, crops=5)
    running = sc.RunningCalibration()
    choose(sc.AgilePruner(keep=2, mean_erank=running), visual, frozenset({"attention"}), None)
    assert running.so_far.images == 1


@pytest.mark.parametrize(
    ("stored", "field"),
    [
        ({"erank": 5.0, "images": True}, "images"),
        ({"erank": 5.0, "images": 1.5}, "images"),
        ({"erank": 5.0, "images": "3"}, "images"),
        ({"erank": "5"}, "erank"),
        ({"erank": None}, "erank"),
        ({"erank": True}, "erank"),
        ({"erank": 10**400}, "erank"),
        ({"erank": 5.0, "entropy": [1]}, "entropy"),
        ({"erank": 5.0, "mean": 1}, "mean"),
        ({}, "erank"),
        ([1], "erank"),
        (None, "erank"),
    ],
)
def test_a_stored_calibration_of_wrong_types_names_the_file_and_the_field(tmp_path, stored, field):
    path = tmp_path / "usual.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=rf"usual\.json is no calibration: {field}: expected"):
        sc.Calibration.load(path)
    if isinstance(stored, dict):
        with pytest.raises(ValueError, match=f"{field}: expected"):
            sc.Method.from_dict({"method": "agilepruner", "mean_erank": stored})


def test_what_is_no_json_names_the_file(tmp_path):
    path = tmp_path / "usual.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"usual\.json"):
        sc.Calibration.load(path)
