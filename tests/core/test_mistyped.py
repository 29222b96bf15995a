import numpy as np
import pytest

import secateur as sc
from secateur.core.methods.prunesid import principal_loadings


@pytest.fixture
def three():
    rng = np.random.default_rng(0)
    tokens = sc.Tokens(features=rng.normal(size=(3, 5, 4)), attention=rng.random((3, 5)))
    return sc.TopK(keep=2).select(tokens)


def test_masks_in_a_list_are_printed_by_their_shape():
    tokens = sc.Tokens(features=np.eye(4), text_mask=[True, False, True])
    assert repr(tokens) == "Tokens(features=(4, 4), text_mask=(3,))"


@pytest.mark.parametrize("place", [7, -4, "a", 1.5])
def test_a_row_that_is_not_there_is_refused(three, place):
    with pytest.raises(ValueError, match="position: expected one of the rows"):
        three.row(place)


@pytest.mark.parametrize(("x", "axis"), [(np.array(1.0), -2), (np.eye(5), 9), (np.eye(5), "a")])
def test_an_axis_that_is_not_there_is_refused(three, x, axis):
    with pytest.raises(ValueError, match="axis: expected one that runs over the tokens"):
        three.gather(x, axis)


def test_budgets_may_be_a_range_and_are_refused_as_such():
    f = sc.FacilityLocation.from_features(np.eye(6))
    with pytest.raises(ValueError, match="k: expected one budget for each of the rows"):
        sc.maximize(f, range(1))


def test_the_smallest_epsilon_asks_all_tokens():
    rng = np.random.default_rng(0)
    f = sc.FacilityLocation.from_features(rng.normal(size=(6, 3)))
    chosen = sc.maximize(f, 2, "stochastic", epsilon=1e-320)
    assert chosen.indices.tolist() == sc.maximize(f, 2).indices.tolist()


ONES, EYE = np.ones(4), np.eye(4)


def tokens(**more):
    given = {
        "features": EYE,
        "attention": ONES,
        "states": EYE,
        "keys": EYE,
        "text": EYE[:2],
        "grid": (2, 2),
    }
    return sc.Tokens(**(given | more))


def covered():
    return sc.FacilityLocation.from_features(EYE)


REFUSED = {
    "sigma: expected a number, got 'x'": lambda: sc.smooth(ONES, (2, 2), sigma="x"),
    "size: expected a whole number, got None": lambda: sc.smooth(ONES, (2, 2), size=None),
    r"grid: expected \(h, w\)": lambda: sc.smooth(ONES, np.array(4)),
    "axis: expected one or several of": lambda: sc.min_max(ONES, axis=-2),
    "axis: expected a whole number or": lambda: sc.min_max(ONES, axis="x"),
    r"beta: expected a number, got \[array": lambda: sc.polarize(ONES, [np.ones(1)]),
    "noise: expected shape": lambda: sc.density_peaks(EYE, 1, noise=3),
    "step: expected a number": lambda: sc.greedy_threshold(EYE, ONES, 2, step="x"),
    "minimum: expected a number, a list": lambda: sc.allocate(ONES, 4, minimum=len),
    "j: expected a number, a list": lambda: covered().gain([], len),
    "indices: expected a number, a list": lambda: covered().value(object()),
    "selectable: expected an array": lambda: sc.FacilityLocation(EYE, selectable=1j),
    "temperature: expected a number": lambda: sc.FacilityLocation.of_blocks(
        [sc.SoftmaxBlock(EYE, EYE, "x")]
    ),
    "n: expected a whole number": lambda: sc.Selection.of(np.arange(2), 4).mask("x"),
    "features: expected shape": lambda: sc.ApET(keep=2).select(tokens()).merge(ONES),
    "images: expected Tokens, got int at place 0": lambda: sc.Calibration.of([3]),
    "tokens: expected Tokens, got 3": lambda: sc.RunningCalibration().see(3),
    "mean_erank: erank: expected a record": lambda: sc.AgilePruner(mean_erank={"a": 1}),
    "name: expected a word, got": lambda: sc.published(["eadp"]),
    "name: expected a word, got ndarray of shape": lambda: sc.backend(np.ones(2)),
    "features: expected a number, a list": lambda: sc.Tokens(features=[[1, 2], [3]]),
    "class_state: expected one vector for each": lambda: tokens(class_state=np.ones((2, 4))),
    "attention: masked arrays": lambda: tokens(attention=np.ma.masked_array(ONES)),
    "names: expected inputs such as": lambda: tokens().require("TopK", "luck"),
    "start: expected a whole number, got nan": lambda: sc.FPS(start=float("nan")),
    "group: expected a whole number, got 3.0": lambda: sc.PruneSID(group=3.0),
    "text_mask: 3 places for 2 text tokens": lambda: sc.EADP(keep=2).select(
        tokens(text_mask=np.ones(3, dtype=bool))
    ),
    "text_mask: expected a list with one entry": lambda: sc.EADP(keep=2).select(
        tokens(text=[EYE, EYE], text_mask=ONES), check_finite=False
    ),
    "text: expected vectors of length 4": lambda: sc.MMTok(keep=2).select(
        tokens(text=np.ones((2, 3)))
    ),
    "features: contains NaN or infinity, so that they have no rank": lambda: sc.effective_rank(
        np.full((3, 2), np.nan), check_finite=False
    ),
    r"vectors: expected shape \(\.\.\., N, D\)": lambda: sc.LogDeterminant.from_span(ONES),
    "vectors: contains NaN": lambda: sc.LogDeterminant.from_span(np.nan * EYE),
    "seed: expected a whole number of at least 0": lambda: sc.maximize(
        covered(), 2, "stochastic", seed=-1
    ),
    "similarity: contains NaN or infinity, or features do": lambda: sc.EADP(
        keep=2, alpha=0.0, sign=1
    ).select(tokens(features=np.full((4, 4), np.nan), embeds=EYE), check_finite=False),
    "text_global: expected at least one": lambda: sc.CDPruner(keep=2).select(
        tokens(text_global=[])
    ),
    "text_global: expected vectors of length 4": lambda: sc.CDPruner(keep=2).select(
        tokens(text_global=np.ones(3))
    ),
    r"text_global: its leading axes \(1,\) are not those": lambda: sc.CDPruner(keep=2).select(
        tokens(text_global=ONES[None])
    ),
    r"text: its leading axes \(1,\) are not those": lambda: sc.MMTok(keep=2).select(
        tokens(text=EYE[None])
    ),
    r"blocks: expected rows and candidates of one length and batch": lambda: (
        sc.FacilityLocation.of_blocks([sc.SoftmaxBlock(EYE[None], EYE, 1.0)])
    ),
    "storage: expected a path": lambda: sc.calibrate(lambda m: 0.0, trials=1, storage=len),
    "features: expected real numbers": lambda: sc.EADP(keep=2).select_parts(
        [tokens(features=EYE.astype(complex))], 1
    ),
    "text: its leading axes are not those of features": lambda: sc.EADP(keep=2).select(
        tokens(text=EYE[None])
    ),
    "patch: expected a positive whole number of pixels, got array": lambda: sc.patch_entropy(
        np.ones((4, 4, 3)), np.array(2)
    ),
    "features: contains NaN or infinity, so that they have no directions": lambda: sc.ApET(
        keep=2
    ).select(tokens(features=np.where(EYE, np.inf, 1.0)), check_finite=False),
    "ordered: expected True or False": lambda: sc.Selection.of(np.arange(2), 4).gather(
        EYE, ordered=ONES
    ),
    "weights: contain NaN or infinity, or text or features do": lambda: sc.EADP(keep=2).select(
        tokens(text=np.full((2, 4), np.nan)), check_finite=False
    ),
    "entropy: expected a mean above 0, got nan of attention": lambda: sc.RunningCalibration().see(
        tokens(attention=np.full(4, np.nan))
    ),
    "images: expected at least one to calibrate on": lambda: sc.calibrate(
        lambda m: 0.0,
        trials=1,
        progress=False,
        method=sc.ERASE(patch=4),
        images=[
            tokens(
                features=none(4, 4),
                attention=none(4),
                states=None,
                keys=None,
                text=None,
                pixels=none(8, 8, 3),
            )
        ],
    ),
    "features: numbers too large for ApET": lambda: sc.ApET(keep=2).select(
        tokens(features=1e308 * EYE + 1e200)
    ),
}


@pytest.mark.parametrize("words", REFUSED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_does_not_fit_is_refused_by_name(words):
    with pytest.raises(ValueError, match=f"^{words}"):
        REFUSED[words]()


def test_inputs_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    mixed = tokens(attention=torch.ones(4))
    for careful in (True, False):
        with pytest.raises(ValueError, match="arrays of one library are expected"):
            sc.TopK(keep=2).select(mixed, check_finite=careful)


def none(*rest):
    return np.zeros((0, *rest))


def test_a_batch_of_no_images_is_an_answer():
    f = sc.LogDeterminant(none(4, 4), above_identity=True)
    assert f.gain([1], 0).shape == (0,)
    assert f.gain([1], [0, 2]).shape == (0, 2)
    assert sc.polarize(none(4), 2.0).shape == sc.min_max(none(4)).shape == (0, 4)
    assert sc.Selection.of(none(2), 4).per_frame(2).shape == (0, 2)
    empty = tokens(features=none(4, 4), attention=none(4), states=none(4, 4), keys=none(4, 4))
    for method in (
        sc.AgilePruner(keep=1, mean_erank=sc.RunningCalibration()),
        sc.EADP(keep=1, crops="importance"),
        sc.EADP(keep=1, crops="joint"),
    ):
        assert method.select(empty).count.shape == (0,)


def test_no_candidates_have_no_gains():
    for f in (covered(), sc.LogDeterminant(EYE), sc.Dispersion(EYE)):
        assert f.gain([1], []).shape == (0,)


def test_scores_that_are_none_get_no_tokens_but_those_left_over():
    scores = np.array([np.nan, 1.0, np.inf])
    shared = sc.allocate(scores, 3, minimum=0, check_finite=False)
    assert shared.tolist() == [0, 0, 3]


def test_lists_are_the_tuples_that_were_declared():
    method = sc.SparseVLM(after=[1, 3])
    assert method.after == (1, 3)
    assert sc.Method.from_dict(method.to_dict()) == method


def test_lists_are_arrays_to_every_function():
    video = np.eye(6)[[0, 1, 0, 2, 3, 4]]
    listed = sc.allocate_in_time(video.tolist(), 3, 4)
    assert listed.tolist() == sc.allocate_in_time(video, 3, 4).tolist()


def test_vitcop_budgets_each_frame():
    video = sc.Tokens(
        features=np.eye(6), attention=np.ones(6), keys=np.eye(6), grid=(1, 3), frames=2
    )
    method = sc.ViTCoP(keep=0.4, scale=1e308)
    assert int(method.select(video).count) == method.budget(6, 2) == 2


def test_patches_of_as_many_greys_are_ties_to_every_backend():
    greys = np.random.default_rng(0).permutation(256)[:128].reshape(8, 16)
    image = np.repeat(greys[..., None], 3, axis=-1).astype(np.uint8)
    patches = sc.Tokens(pixels=image, grid=(2, 4))
    for backend in ("auto", "numpy", "numba", "reference"):
        kept = sc.ERASE(keep=3).select(patches, backend=backend)
        assert kept.indices.tolist() == list(range(int(kept.count)))


def test_agilepruner_spends_a_video_s_budget():
    video = sc.Tokens(features=np.eye(8), attention=np.ones(8), frames=2)
    method = sc.AgilePruner(keep=3, mean_erank=2.0, over="video")
    assert int(method.select(video).count) == method.budget(8, 2) == 6


def test_frames_that_tell_unlike_much_are_one_selection():
    rng = np.random.default_rng(0)
    video = sc.Tokens(
        features=rng.normal(size=(12, 1)), attention=rng.random(12), grid=(3, 2), frames=2
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        method = sc.published("prunesid", keep=3, group=1, over="change")
        features = np.concatenate([rng.normal(size=(6, 1)), rng.normal(size=(6, 1)) / 9])
        chosen = method.select(video.with_(features=features))
        assert chosen.size == 12


def test_numbers_of_numpy_become_numbers_and_nan_is_none():
    method = sc.HoliTom(tau=np.float16(0.5), neighbours=np.int64(3))
    assert (type(method.tau), type(method.neighbours)) == (float, int)
    with pytest.raises(ValueError, match=r"^same: expected a cosine"):
        sc.FastVID(same=np.float32("nan"))


def test_rows_and_masks_that_are_arrays_are_refused(three):
    with pytest.raises(ValueError, match="position: expected one of the rows"):
        three.row(np.array([1, 2]))
    with pytest.raises(ValueError, match=r"text_mask: expected shape \(\.\.\., L\)"):
        sc.dense_relevance(EYE, EYE[:2], text_mask=3)
    with pytest.raises(ValueError, match="features: expected real numbers"):
        sc.ApET(keep=2).select(tokens()).merge(EYE.astype("U3"))


def test_numbers_of_numpy_are_lengths_of_masks_in_any_library():
    strict = pytest.importorskip("array_api_strict")
    mask = sc.Selection.of(strict.asarray([1]), 2).mask(np.int64(3))
    assert [bool(each) for each in mask] == [False, True, False]


def test_factors_beyond_what_rounding_leaves_of_one_gain_nothing():
    f = sc.LogDeterminant.from_factors(1e150 * np.random.default_rng(0).normal(size=(9, 2)))
    assert not np.isnan(f.gain([0, 1, 2, 3, 4], [*range(9)])).any()


def test_a_mask_that_is_a_number_beyond_int64_is_refused():
    torch = pytest.importorskip("torch")
    eye = torch.eye(4)
    image = sc.Tokens(features=eye, states=eye, text=eye, text_mask=2**63)
    with pytest.raises(ValueError, match=r"text_mask: expected shape \(\.\.\., L\), got \(\)"):
        sc.MMTok(keep=2).select(image)


def test_relevances_equal_but_for_rounding_are_ties_to_cdpruner():
    torch = pytest.importorskip("torch")
    ones = np.ones((9, 5))
    for lift in (np.asarray, torch.asarray):
        image = sc.Tokens(features=lift(ones), text_global=lift(ones[0]), frames=3)
        chosen = sc.CDPruner(keep=9).select(image)
        assert chosen.indices.tolist() == list(range(9))
        assert chosen.scores.tolist() == [1.0] * 9


def test_images_without_plain_numbers_are_refused():
    torch = pytest.importorskip("torch")
    image = np.ones((4, 4, 3), dtype=np.uint8)
    for odd in (
        torch.asarray(image).to("meta"),
        torch.asarray(image).to_sparse(),
        np.ma.masked_array(image, mask=image > 0),
        image.astype(object),
    ):
        with pytest.raises(ValueError, match=r"^image: "):
            sc.patch_entropy(odd, 2)


def test_a_radius_whose_square_is_no_number_holds_everything():
    video = tokens(grid=(2, 2))
    wide, all_of_it = (sc.ViTCoP(keep=2, radius=radius) for radius in (1e308, 1e100))
    assert wide.select(video).indices.tolist() == all_of_it.select(video).indices.tolist()


def test_unchecked_attention_may_be_anything_to_scope():
    image = tokens(attention=np.array([1.0, -1.0, 2.0, 3.0]), states=None)
    kept = sc.SCOPE(keep=2).select(image, check_finite=False)
    assert kept.indices.tolist() == [3, 2]


def test_a_limit_of_half_precision_is_a_number():
    kept = sc.greedy_threshold(EYE, ONES, 2, step=0.1, tau_max=np.float16(0.5))
    assert kept.indices.tolist() == [0, 1]


def test_a_mask_of_words_has_the_axes_of_the_batch():
    image = tokens(text=EYE, text_mask=np.ones((2, 3, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"^text_mask: expected"):
        sc.MMTok(keep=2).select(image)


def test_directions_of_equal_singular_values_do_not_depend_on_who_computes():
    torch = pytest.importorskip("torch")
    states = -np.eye(3)
    image = sc.Tokens(features=EYE[:3], attention=np.array([1.0, 0.0, 1.0]), states=states)
    tensors = sc.Tokens(
        features=torch.asarray(EYE[:3]),
        attention=torch.asarray([1.0, 0.0, 1.0]).double(),
        states=torch.asarray(states),
    )
    method = sc.PruneSID(keep=2, group=2)
    assert method.select(image).indices.tolist() == method.select(tensors).indices.tolist()
    # Two directions that are equal and one of nothing: to the first token, then to the second.
    loadings = principal_loadings(8.0 * EYE[:3, :3], 3)
    first, second = [(2 / 3) ** 0.5, 6**-0.5, 6**-0.5], [0.0, 0.5**0.5, 0.5**0.5]
    np.testing.assert_allclose(loadings, np.stack([first, second, [0, 0, 0]], 1), atol=1e-12)


def test_no_scale_makes_a_threshold_that_is_no_number():
    image = sc.Tokens(features=np.zeros((5, 1)), attention=np.ones(5))
    for model in ("llava", "qwen"):
        chosen = sc.PruneSID(keep=3, model=model, scale=1e308).select(image)
        assert chosen.info["threshold"] == 0.0


def test_a_frame_of_flashvid_keeps_no_more_than_it_has():
    video = sc.Tokens(features=EYE, frames=2, attention=ONES)
    assert sc.FlashVID(keep=1.0, expansion=1e308).budget(10**9) == 10**9
    assert int(sc.FlashVID(keep=1, expansion=1e308).select(video).count) == 4


def test_a_kernel_of_infinities_is_not_above_the_identity():
    kernel = np.full((3, 3), np.inf)
    with pytest.raises(ValueError, match=r"^kernel: above_identity is checked"):
        sc.LogDeterminant(kernel, above_identity=True, check_finite=False)


def test_a_list_of_numbers_is_a_text_as_an_array_is():
    image = tokens(text_global=[[1, 2, 3, 4], [3]])
    with pytest.raises(ValueError, match=r"^text_global: expected vectors of length 4"):
        sc.CDPruner(keep=2).select(image)


def test_what_is_no_number_has_no_directions():
    image = sc.Tokens(features=np.full((3, 4), np.nan), attention=ONES[:3])
    with pytest.raises(ValueError, match=r"^features: contains NaN, so that they have no"):
        sc.PruneSID(keep=2).select(image, check_finite=False)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 1e308), ("entropy_temperature", 1e-320)]
)
def test_temperatures_that_leave_single_precision_are_refused(name, value):
    x = EYE.astype(np.float32)
    for call in (lambda **more: sc.dense_relevance(x, x, **more), sc.EADP):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            call(**{name: value})
        for aggregate in ("entropy", "tempered"):
            call(**{name: {"temperature": 1e12}.get(name, 1e-12), "aggregate": aggregate})
    relevance = sc.dense_relevance(x, x, aggregate="tempered", entropy_temperature=1e-12)
    assert np.isfinite(relevance).all()


def test_a_power_may_be_a_number_of_numpys():
    strict = pytest.importorskip("array_api_strict")
    scores = strict.asarray([0.25, 1.0])
    assert np.asarray(sc.polarize(scores, np.float16(0.5))).tolist() == [0.5, 1.0]


def test_what_is_not_looked_at_may_be_anything():
    torch = pytest.importorskip("torch")
    video = sc.Tokens(features=torch.asarray(EYE), frames=2, attention=1e308 * ONES)
    assert int(sc.FlashVID(keep=1, selection="div").select(video).count) == 2


def test_a_gamma_whose_square_is_no_number_is_refused():
    for call in (
        lambda: sc.LogDeterminant.from_factors(EYE, 1e308),
        lambda: sc.LogDeterminant.from_factors(EYE.astype(np.float32), 1e30),
        lambda: sc.OTPrune(keep=2, gamma=1e308).select(sc.Tokens(features=EYE)),
    ):
        with pytest.raises(
            ValueError, match=r"^gamma: expected a finite number of at least 0, got"
        ):
            call()
    f = sc.LogDeterminant.from_factors(EYE.astype(np.float32), 1e9)
    assert np.isfinite(float(sc.maximize(f, 2).value))


@pytest.mark.parametrize("shapes", [[2], ["nan"], [(2, 3, 4)], [(2, None)], [(0, 3)], np.array(2)])
def test_shapes_to_warm_up_for_are_pairs(shapes):
    with pytest.raises(ValueError, match=r"^shapes: expected"):
        sc.warm_up("numpy", shapes)


def test_crops_without_numbers_have_no_relevance():
    crops = np.stack([EYE, np.full((4, 4), np.nan)])
    parts = [sc.Tokens(features=each, text=EYE[:2]) for each in crops]
    together = sc.Tokens(features=crops, text=EYE[:2], grid=(2, 2))
    for call in (
        lambda: sc.EADP(keep=1).select_parts(parts, 2),
        lambda: sc.EADP(keep=1, crops="importance").select(together, check_finite=False),
    ):
        with pytest.raises(ValueError, match=r"^features, text: contain NaN or infinity"):
            call()


def test_crops_without_features_are_refused_by_name():
    parts = [sc.Tokens(pixels=np.zeros((2, 2, 3)), grid=(2, 2), text=EYE[:2])] * 2
    with pytest.raises(sc.MissingInputError, match="features"):
        sc.EADP(keep=1).select_parts(parts, 2)


def test_half_a_level_goes_up_whoever_adds():
    from secateur.core.methods.downsample import _settled

    half = np.array([134.5, 134.5 - 1e-13, 134.5 + 1e-13, 134.4999])
    assert _settled(half, levels=True).tolist() == [135, 135, 135, 134]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_factors_whose_squares_are_no_numbers_still_give_distinct_picks(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    factors = np.random.default_rng(0).normal(size=(20, 4)) * 2e150
    f = sc.LogDeterminant.from_factors(factors, 0.5)
    assert sorted(sc.maximize(f, 20, backend=backend).indices.tolist()) == list(range(20))
    lost = sc.LogDeterminant.from_factors(np.full((4, 2), np.nan), check_finite=False)
    with pytest.raises(ValueError, match=r"^features or factors: contain NaN"):
        sc.maximize(lost, 2, backend=backend)


def test_a_text_of_a_batch_is_not_that_of_a_crop():
    parts = [sc.Tokens(features=EYE, text=EYE[None, :2])] * 2
    with pytest.raises(ValueError, match=r"^text: its leading axes are not those of features"):
        sc.EADP(keep=1).select_parts(parts, 2)


def test_saliency_that_is_no_number_is_refused():
    image = sc.Tokens(features=EYE, attention=np.array([3.0, 1.0, 0.5, 2.0]))
    with pytest.raises(ValueError, match="too large for SCOPE"), np.errstate(all="ignore"):
        sc.SCOPE(keep=2, alpha=1e308).select(image)


@pytest.mark.parametrize("pixels", [len, 7, "x"])
def test_pixels_that_are_none_are_refused_beside_what_belongs_to_their_tokens(pixels):
    with pytest.raises(ValueError, match=r"^pixels: expected"):
        sc.Tokens(pixels=pixels, grid=(2, 2), attention=ONES)


@pytest.mark.parametrize("grid", [4, "x", (2,), (0, 4)])
def test_a_grid_that_is_none_is_refused_beside_what_belongs_to_its_tokens(grid):
    with pytest.raises(ValueError, match=r"^grid: expected"):
        sc.Tokens(pixels=np.zeros((2, 2, 3)), grid=grid, attention=ONES)


def test_half_a_token_of_a_frame_goes_the_same_way_whoever_adds():
    method = sc.VidCom2(keep=0.25)
    score = np.arange(20.0).reshape(2, 10)
    for noise in (0.0, 3e-15, -3e-15):
        assert method._kept(score, np.array([0.25 + noise, 0.25 - noise]), 5).sum() == 4


def test_images_to_calibrate_on_are_no_number():
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match=r"^images: expected"):
        sc.calibrate(lambda method: 0.0, images=np.array(3), trials=1, progress=False)


def test_what_is_no_number_is_not_complex():
    image = sc.Tokens(features=EYE, attention=np.full(4, np.nan))
    method = sc.Mixture(keep=2, mean_erank=3.0, measure="entropy", attention=sc.TopK())
    with pytest.raises(ValueError, match=r"^features, attention: contain NaN"):
        method.select(image, check_finite=False)


def test_a_text_given_as_rows_of_numbers_is_one_of_several():
    rows = [[3.0, -1.0, 0.0, 0.0], [2.0, -2.0, 3.0, -8.0]]
    both = [EYE[:1], rows]
    expected = sc.Tokens(features=EYE, states=EYE, text=[EYE[:1], np.array(rows)])
    for method in (sc.MMTok(keep=2), sc.EADP(keep=2)):
        chosen = method.select(sc.Tokens(features=EYE, states=EYE, text=both))
        assert chosen.indices.tolist() == method.select(expected).indices.tolist()


def test_images_to_calibrate_on_are_tokens_one_and_all():
    pytest.importorskip("optuna")
    image = sc.Tokens(pixels=np.zeros((56, 56, 3)), grid=(2, 2))
    for images in ([image, {}], [{"pixels": 3}], "ab"):
        with pytest.raises(ValueError, match=r"^images: expected"):
            sc.calibrate(lambda method: 0.0, images=images, trials=1, progress=False)
