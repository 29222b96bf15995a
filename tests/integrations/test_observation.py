"""What is observed of an encoder: the right numbers, of the right tokens, at little cost."""

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.vision_utils import get_vision_window_index

import secateur as sc
from secateur.core.acts import Cuts
from secateur.core.inputs import Request
from secateur.integrations.attach import attach, choose_each, encode
from secateur.integrations.choosing import wanted
from secateur.integrations.pixels import Pixels
from secateur.integrations.transformers.models import family_of

MANY = {"words": ("compare both", "how many red dog ?"), "images": (2, 1)}
HELD = 1 << 24
EVERYTHING = frozenset({"attention", "attention_shallow", "keys", "pixels"})


def encoded(model, inputs, wants=EVERYTHING, processor=None):
    family = family_of(model)
    pixels = Pixels.of(family, processor)
    return family.encode(model, inputs, wants & family.offers, None, pixels)


def own_attention(model, inputs):
    """Attention of every picture's tokens (P, N), from the encoder's own eager weights.

    For Qwen one row an image, in the prompt's order.
    """
    if hasattr(model.model, "visual"):
        return qwen_attention(model, inputs)
    values = inputs["pixel_values"]
    if values.ndim == 5:
        counts = [int(own.flatten(1).any(dim=1).sum()) for own in values]
        values = torch.cat([own[:n] for own, n in zip(values, counts, strict=True)])
    if hasattr(model.model, "vision_model"):
        values = values[values.flatten(1).any(dim=1)]
        weights = model.model.vision_model(values, output_attentions=True).attentions[-1]
        maps = weights.mean(dim=1).mean(dim=1)[:, None].unflatten(-1, (8, 8))
        return torch.nn.functional.avg_pool2d(maps, 2).flatten(1)
    tower = model.model.vision_tower
    if model.config.vision_config.model_type == "pixtral":
        return pixtral_attention(tower, values, inputs["image_sizes"])
    if "image_position_ids" in inputs:
        return gemma4_attention(tower, values, inputs["image_position_ids"])
    chosen = getattr(model.config, "vision_feature_layer", -1)
    weights = tower(values, output_attentions=True).attentions[chosen]
    if model.config.vision_config.model_type == "clip_vision_model":
        return weights.mean(dim=1)[:, 0, 1:]
    if model.config.vision_config.model_type == "internvl_vision":
        maps = weights.mean(dim=1)[:, None, 0, 1:].unflatten(-1, (8, 8))
        return torch.nn.functional.avg_pool2d(maps, 2).flatten(1)
    received = weights.mean(dim=1).mean(dim=1)
    if model.config.model_type == "gemma3":
        return torch.nn.functional.avg_pool2d(received[:, None].unflatten(-1, (8, 8)), 2).flatten(1)
    return received


def pixtral_attention(tower, values, sizes):
    """From the block of each image among the weights between all."""
    (weights,) = tower(values, image_sizes=sizes, output_attentions=True).attentions[-1]
    found, start = [], 0
    for height, width in (sizes // tower.patch_size).tolist():
        stop = start + height * width
        own = weights.mean(dim=0)[start:stop, start:stop].mean(dim=0)
        assert float(own.sum()) == pytest.approx(1.0, abs=1e-5)
        maps = own.unflatten(0, (height, width))[None, None]
        found.append(torch.nn.functional.avg_pool2d(maps, 2).flatten())
        start = stop
    return found


def gemma4_attention(tower, values, positions):
    """Of the patches that are no padding."""
    weights = tower(values, positions, output_attentions=True).attentions[-1].mean(dim=1)
    found = []
    for own, places in zip(weights, positions, strict=True):
        real = places[:, 0] >= 0
        maps = torch.zeros((places.amax(dim=0) + 1).tolist()[::-1])
        maps[places[real, 1], places[real, 0]] = own[real][:, real].mean(dim=0)
        found.append(torch.nn.functional.avg_pool2d(maps[None, None], 2).flatten())
    return found


def qwen_attention(model, inputs):
    """From the layer's inputs, with every patch found again by its rotary angles."""
    tower, merge = model.model.visual, model.model.visual.spatial_merge_size
    seen = {}

    def note(module, args, kwargs):
        seen.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = tower.blocks[-1].attn.register_forward_pre_hook(note, with_kwargs=True)
    model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    handle.remove()
    attn = tower.blocks[-1].attn
    q, k, _ = attn.qkv(seen["hidden"]).reshape(len(seen["hidden"]), 3, attn.num_heads, -1).unbind(1)
    cos, sin = (x[:, None] for x in seen["position_embeddings"])

    def turned(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    q, k = turned(q), turned(k)
    bounds = seen["cu_seqlens"].tolist()
    found = []
    for (_, height, width), start, stop in zip(
        inputs["image_grid_thw"].tolist(), bounds[:-1], bounds[1:], strict=True
    ):
        logits = torch.einsum("qhd,khd->hqk", q[start:stop], k[start:stop])
        weights = (logits / q.shape[-1] ** 0.5).softmax(-1).mean(dim=0).mean(dim=0)
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        angles, _ = tower.rotary_pos_emb(seen["hidden"], places)
        here = seen["position_embeddings"][0][start:stop]
        at = torch.cdist(angles.double(), here.double()).argmin(dim=1)
        laid = weights[at].reshape(height // merge, merge, width // merge, merge)
        found.append(laid.mean(dim=(1, 3)).flatten())
    return found


@pytest.fixture(scope="module")
def eager(case):
    return case.model("eager")


def test_attention_is_the_encoders_own(case, model, eager):
    inputs = case.inputs(**MANY)
    with torch.no_grad():
        expected = own_attention(eager, inputs)
        visuals = encoded(model, inputs)
    pictures = 0
    for visual in visuals:
        for number, part in enumerate(visual.parts[:1]):
            own = expected[pictures + number]
            assert part.attention.shape == (len(part.index),)
            torch.testing.assert_close(part.attention.float(), own.float(), rtol=1e-4, atol=1e-6)
        pictures += max(visual.crops, 1)
    assert model.config._attn_implementation == "sdpa"


def test_crops_are_where_the_model_puts_them(cases):
    """Each token of a crop is found again in the projector's output, by its value."""
    case = cases["llava_next"]()
    model, inputs = case.model(), case.inputs(**MANY)
    seen = []
    handle = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    with torch.no_grad():
        visuals = encoded(model, inputs, frozenset({"attention", "keys"}))
    handle.remove()
    raw, first = seen[0], 0
    for visual in visuals:
        covered = np.concatenate([part.index for part in visual.parts])
        marks = [place for place, _ in visual.separators]
        assert sorted([*covered, *marks]) == list(range(visual.size))
        assert torch.equal(visual.features[marks], model.model.image_newline.expand(len(marks), -1))
        pictures = raw[first : first + visual.crops]
        used = set()
        for part in visual.parts:
            same = torch.cdist(visual.features[part.index], pictures.flatten(0, 1)).argmin(dim=1)
            assert torch.equal(pictures.flatten(0, 1)[same], visual.features[part.index])
            crops = (same // pictures.shape[1]).unique()
            assert len(crops) == 1
            used.add(int(crops))
            side = int(pictures.shape[1] ** 0.5)
            places = same % pictures.shape[1]
            rows, columns = places // side, places % side
            grid = (rows - rows.min()) * part.grid[1] + columns - columns.min()
            assert torch.equal(grid, torch.arange(len(part.index)))
        assert used == set(range(visual.crops))
        first += visual.crops


WITH_PIXELS = (
    "llava",
    "qwen2_5_vl",
    "qwen3_vl",
    pytest.param("glm4v", marks=pytest.mark.families),
)


@pytest.mark.parametrize("name", WITH_PIXELS)
def test_pixels_come_back_to_the_8_bit_value(cases, name):
    case = cases[name]()
    model = case.model()
    inputs, processor = case.inputs(**MANY), case.processor()
    plain = case.processor()
    plain.image_processor.do_normalize = plain.image_processor.do_rescale = False
    whole = dict(plain.image_processor(images=case.images(3), return_tensors="pt"))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype).float()}
        visuals = encoded(model, given, EVERYTHING, processor)
        same = Pixels((0.0,) * 3, (1.0,) * 3, 1.0)
        family = family_of(model)
        expected = family.encode(
            model,
            {**inputs, "pixel_values": whole["pixel_values"].float()},
            frozenset({"pixels"}),
            None,
            same,
        )
        for ours, theirs in zip(visuals, expected, strict=True):
            image = ours.parts[0].pixels
            off = (image - theirs.parts[0].pixels).abs().max()
            # bfloat16 cannot tell neighbouring values apart where |x| > 2.
            assert off == 0 or (dtype == torch.bfloat16 and off == 1)
            assert image.shape[-1] == 3
            assert image.max() > 200


@pytest.mark.parametrize("name", [*WITH_PIXELS, "internvl"])
def test_pixels_are_the_picture(cases, name):
    """A picture that needs no resizing comes back as it was."""
    case = cases[name]()
    model = case.model()
    sides = {"internvl": (32, 32), "llava": (32, 32)}.get(name, (32, 48))
    random = np.random.default_rng(1)
    image = random.integers(0, 256, (*sides, 3)).astype(np.uint8)
    processor = case.processor()
    inputs = processor(
        text=[case.text("what ?")],
        images=[transformers.image_utils.to_numpy_array(image)],
        return_tensors="pt",
    )
    (visual,) = encoded(model, dict(inputs), EVERYTHING, processor)
    assert np.array_equal(visual.parts[0].pixels.numpy(), image)


class Largest(TorchDispatchMode):
    """The most elements of any tensor made within the block."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("side", [16, 48])
def test_no_matrix_between_all_tokens_is_held(cases, side):
    """Of 9216 patches and 4 heads, 340 million weights are worked out, 17 million held at most."""
    model = cases["qwen2_5_vl"]().model()
    grid = torch.tensor([[1, 2 * side, 2 * side]])
    count = int(grid.prod())
    values = torch.randn(count, 96)
    inputs = {"pixel_values": values, "image_grid_thw": grid}
    with torch.no_grad(), Largest() as without:
        encoded(model, inputs, frozenset())
    with torch.no_grad(), Largest() as largest:
        (visual,) = encoded(model, inputs, frozenset({"attention"}))
    assert largest.elements <= max(without.elements, HELD)
    assert side == 16 or 4 * count**2 > 20 * HELD
    torch.testing.assert_close(float(visual.parts[0].attention.sum()), 0.25, rtol=1e-4, atol=0)


def test_methods_that_need_what_a_family_lacks_are_refused(case, model):
    class Greedy(sc.TopK):
        @property
        def needs(self):
            return frozenset({"embeds", "attention"})

    with pytest.raises(ValueError, match=r"Greedy needs embeds, which .* does not have"):
        attach(model, Greedy(keep=3))


def test_every_method_keeps_what_it_says(case, model):
    """All methods of the library, as attached, with text in the language model's space."""
    inputs, processor = case.inputs(), case.processor()
    family = family_of(model)
    ran, odd = set(), set()
    for name, kind in sorted(sc.methods().items()):
        if name in ("mixture", "visionselector"):  # which need methods or weights
            continue
        more = {"agilepruner": {"mean_erank": 5.0}, "erase": {"patch": 8}}.get(name, {})
        method = kind(keep=0.5, **more)
        if isinstance(method, Cuts) and not case.cuttable:
            continue
        if not method.prunes_before or method.needs - family.offers - {
            "text",
            "text_global",
        }:
            continue
        with attach(model, method, processor) as att:
            logits = model(**inputs).logits
        report = att.last
        assert torch.isfinite(logits).all(), name
        size = sum(h * w for h, w in report.grids[0])
        kept = sum(part.budget for part in report.pictures[0])
        if method.counted_from == "size" and kept != size // 2:
            odd.add(name)
        assert 0 < kept <= size
        ran.add(name)
    assert {"eadp", "topk", "divprune", "cdpruner", "fps", "random", "uniform"} <= ran
    # Pixels decide for ERASE, MustDrop drops between layers; the others drop between frames, of
    # which an image has one.
    assert odd <= {"erase", "mustdrop", "dycoke", "evs"}


class Asking(sc.TopK):
    """A method that looks where it is told."""

    asked: dict = {}  # noqa: RUF012

    @property
    def requests(self):
        return self.asked


def tower_attention(case, inputs):
    """Attention (B, H, T, T) of each layer of a CLIP, and what it returns of each."""
    tower = case.model("eager").model.vision_tower
    out = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    return out.attentions, out.hidden_states


REQUESTS = {
    "all": (Request("attention", by="all"), lambda a: a[-2].mean(1).mean(1)[:, 1:]),
    "first": (Request("attention", layer=0), lambda a: a[0].mean(1)[:, 0, 1:]),
    "last": (Request("attention", layer="last"), lambda a: a[-1].mean(1)[:, 0, 1:]),
    "from the end": (
        Request("attention", layer=-2, by="all"),
        lambda a: a[-2].mean(1).mean(1)[:, 1:],
    ),
    "a share": (Request("attention", layer=1 / 2), lambda a: a[len(a) // 2 - 1].mean(1)[:, 0, 1:]),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_attention_is_that_which_a_method_asks_for(cases, what):
    case = cases["llava"]()
    model, inputs = case.model(), case.inputs()
    request, theirs = REQUESTS[what]
    family = family_of(model)
    with torch.no_grad():
        attentions, _ = tower_attention(case, inputs)
        (visual,) = family.encode(
            model, inputs, frozenset({"attention"}), None, None, {"attention": request}
        )
    ours = visual.parts[0].attention
    torch.testing.assert_close(ours, theirs(attentions)[0], rtol=1e-4, atol=1e-6)


def test_one_head_of_full_width_keys_and_states(cases):
    case = cases["llava"]()
    model, inputs = case.model(), case.inputs()
    tower = model.model.vision_tower
    asked = {
        "attention": Request("attention", layer="last", heads="one"),
        "keys": Request("keys"),
        "states": Request("states"),
        "class_state": Request("class"),
    }
    with torch.no_grad():
        _, hidden = tower_attention(case, inputs)
        (visual,) = family_of(model).encode(model, inputs, frozenset(asked), None, None, asked)
        part = visual.parts[0]
        layers = tower.encoder.layers
        chosen = model.config.vision_feature_layer
        x = layers[-1].layer_norm1(hidden[-2])
        q, k = layers[-1].self_attn.q_proj(x), layers[-1].self_attn.k_proj(x)
        row = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)[:, 0, 1:]
        torch.testing.assert_close(part.attention, row[0], rtol=1e-4, atol=1e-6)
        deep = layers[chosen % len(hidden) - 1]
        k = deep.self_attn.k_proj(deep.layer_norm1(hidden[chosen - 1]))[0, 1:]
        heads = model.config.vision_config.num_attention_heads
        torch.testing.assert_close(part.keys, k.unflatten(-1, (heads, -1)).mean(dim=-2))
        torch.testing.assert_close(part.states, hidden[chosen][0, 1:])
        torch.testing.assert_close(part.class_state, hidden[chosen][0, 0])
        torch.testing.assert_close(visual.project(part.states), visual.features)


def test_windows_of_a_tower_pay_no_attention_to_the_whole(cases):
    case = cases["qwen2_5_vl"]()
    model, inputs = case.model(), case.inputs()
    full = model.model.visual.fullatt_block_indexes
    window = next(layer for layer in range(8) if layer not in full)
    method = Asking(keep=3)
    object.__setattr__(method, "asked", {"attention": Request("attention", layer=window)})
    with attach(model, method), pytest.raises(ValueError, match="attends within windows"):
        model(**inputs)


def test_what_is_made_before_the_projector_is_read_in_its_order(cases):
    """Placeholders are as many as states were made; the report tells which tokens were kept."""
    case = cases["llava"]()
    model, inputs = case.model(), case.inputs()
    method = sc.published("prumerge", keep=4, adaptive=False)
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad(), attach(model, method) as att:
            model(**inputs)
    finally:
        hook.remove()
    report = att.last
    assert len(report.kept[0]) == 4
    before, after = report.prompt_length
    assert before - after == report.pictures[0][0].kept.size - 5
    assert seen[0].shape[1] == after


def test_what_cannot_be_made_is_refused_when_attaching(cases):
    for name, why in {"qwen2_5_vl": "before the projector", "llava_onevision": "projector"}.items():
        model = cases[name]().model()
        with pytest.raises(ValueError, match=why):
            attach(model, sc.published("visionzip"))
    with pytest.raises(ValueError, match="VisPruner needs states"):
        attach(cases["qwen2_5_vl"]().model(), sc.published("vispruner"))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_states_of_qwen_are_what_its_merger_takes_and_go_to_those_that_need_them(cases, name):
    case = cases[name]()
    model, inputs = case.model(), case.inputs(**MANY)
    tower, left = model.model.visual, []
    handle = tower.blocks[-1].register_forward_hook(
        lambda _module, _args, output: left.append(output.detach())
    )
    method = sc.MMTok(keep=3)
    with torch.no_grad():
        found = encode(model, inputs, wants=method.needs - {"features"}, method=method)
        handle.remove()
        states = left[0].unflatten(0, (-1, 4)).mean(dim=1)
        if name == "qwen2_5_vl":
            grids = inputs["image_grid_thw"]
            order, _ = get_vision_window_index(
                grids,
                spatial_merge_size=tower.spatial_merge_size,
                window_size=tower.window_size,
                patch_size=tower.patch_size,
            )
            assert order.tolist() != sorted(order.tolist())
            states = states[torch.argsort(order)]
        own = [visual.parts[0].states for visual in found.visuals]
        assert torch.equal(torch.cat(own), states)
        chosen = choose_each(method, found)
        with attach(model, method) as att:
            model(**inputs)
    for number, (visual, kept) in enumerate(zip(found.visuals, chosen, strict=True)):
        text = found.text_of(number)
        tokens = sc.Tokens(features=visual.features, states=own[number], text=text.tokens)
        assert kept.kept.tolist() == method.select(tokens).sorted().tolist()
    assert [own.tolist() for own in att.last.kept] == [own.kept.tolist() for own in chosen]
    family = family_of(model).family
    assert "states" in wanted(method, family, None)
    assert "states" in sc.SCOPE().optional - wanted(sc.SCOPE(), family, None)
    with pytest.raises(ValueError, match="VisPruner needs states"):
        wanted(sc.published("vispruner"), family, None)
