"""Cells that a method drops before the encoder: the others come out as if those were masked."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

import secateur as sc
from secateur.integrations.attach import attach, choose_each, encode, shorten
from secateur.integrations.choosing import wanted
from secateur.integrations.observing import rotate
from secateur.integrations.transformers.models import FAMILIES, adapter_of

SKIPPING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
WORDS = ("compare both", "what is in this picture ?")


def paper(seed, height, width):
    """A white page with some noise on it, most of whose cells are like their neighbours."""
    random = np.random.default_rng(seed)
    page = np.full((height, width, 3), 255, dtype=np.uint8)
    for _ in range(3):
        y, x = random.integers(0, height - 8), random.integers(0, width - 8)
        page[y : y + 8, x : x + 8] = random.integers(0, 256, (8, 8, 3))
    return Image.fromarray(page)


@pytest.fixture(params=SKIPPING, scope="module")
def family(request, cases):
    return cases[request.param]()


@pytest.fixture(scope="module")
def model(family):
    return family.model()


def pages(family, monkeypatch, sizes=((48, 64), (40, 24), (64, 72))):
    """Two prompts, with three such pages of different sizes."""
    drawn = [paper(seed, *size) for seed, size in enumerate(sizes)]
    monkeypatch.setattr(family, "images", lambda count, seed=0: drawn[:count])
    return family.inputs(words=WORDS, images=(2, 1))


def masked_tower(model, inputs, kept):
    """The tower on all patches, in which every query sees the kept ones of its stretch alone.

    `kept` says which merged tokens stay. Returns what the tower does.
    """
    tower, grids = model.model.visual, inputs["image_grid_thw"]
    frames = stretches(get_vision_cu_seqlens(grids))
    order, windows = torch.arange(len(kept)), frames
    if hasattr(tower, "window_size"):
        order, ends = get_vision_window_index(
            grids,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        windows = stretches(ends)
    seen = kept[order].repeat_interleave(tower.spatial_merge_size**2)
    stock = [block.attn.forward for block in tower.blocks]
    try:
        for number, block in enumerate(tower.blocks):
            full = not hasattr(tower, "window_size") or number in tower.fullatt_block_indexes
            owner = frames if full else windows
            together = (owner[:, None] == owner[None, :]) & seen[None, :]
            together |= torch.eye(len(owner), dtype=torch.bool)  # A dropped query sees itself.
            block.attn.forward = dense(block.attn, together)
        with torch.no_grad():
            return tower(inputs["pixel_values"], grid_thw=grids, return_dict=True)
    finally:
        for block, forward in zip(tower.blocks, stock, strict=True):
            block.attn.forward = forward


def stretches(ends):
    """The stretch that each patch belongs to."""
    return torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff().long())


def dense(attention, together):
    def forward(hidden_states, position_embeddings=None, **_):
        packed = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1))
        queries, keys, values = packed.permute(1, 2, 0, 3)
        queries, keys = (rotate(x, *position_embeddings) for x in (queries, keys))
        logits = queries @ keys.mT / queries.shape[-1] ** 0.5
        weights = logits.masked_fill(~together, -torch.inf).softmax(-1)
        return attention.proj((weights @ values).transpose(0, 1).flatten(1))

    return forward


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_kept_cells_are_those_of_a_masked_encoder(family, model, monkeypatch, keep):
    inputs = pages(family, monkeypatch)
    encoded = encode(model, inputs, method=sc.PixelPrune(keep=keep))
    flags = [visual.chosen[0].mask() for visual in encoded.visuals]
    kept = torch.cat(flags)
    assert all(1 < int(own.sum()) < len(own) for own in flags)
    out = masked_tower(model, inputs, kept)
    planes = list(zip(*(visual.planes for visual in encoded.visuals), strict=True))
    ours = [torch.cat([visual.features for visual in encoded.visuals])]
    ours += [torch.cat(plane) for plane in planes]
    slow = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
    assert len(slow) == len(ours) == (4 if family.name == "qwen3_vl" else 1)
    for own, other in zip(ours, slow, strict=True):
        assert not own[~kept].any()
        torch.testing.assert_close(own[kept], other[kept], rtol=1e-4, atol=1e-4)
    whole = encode(model, inputs)
    assert not torch.allclose(
        whole.visuals[0].features[flags[0]], ours[0][: len(flags[0])][flags[0]]
    )


def test_where_all_differ_the_encoder_is_the_stock_one(family, model):
    inputs = family.inputs(words=WORDS, images=(2, 1))
    logits = model(**inputs).logits
    for before in ("encoder", "model"):
        with attach(model, sc.PixelPrune(before=before)) as att:
            assert torch.equal(model(**inputs).logits, logits)
        assert att.last.prompt_length[0] == att.last.prompt_length[1]


def test_dropped_cells_never_enter_the_encoder(family, model, monkeypatch):
    inputs = pages(family, monkeypatch)
    read = []
    handle = model.model.visual.blocks[0].register_forward_pre_hook(
        lambda _module, args: read.append(len(args[0]))
    )
    lengths = {}
    with torch.no_grad():
        for before in (None, "encoder", "model"):
            with attach(model, sc.PixelPrune(before=before)) as att:
                model(**inputs)
            lengths[before] = (read.pop(), sum(map(len, att.last.kept)))
    handle.remove()
    patches, kept = len(inputs["pixel_values"]), lengths["model"][1]
    assert 4 * kept < patches
    assert lengths == {
        None: (4 * kept, kept),
        "encoder": (4 * kept, kept),
        "model": (patches, kept),
    }


def test_an_attachment_reads_what_the_stages_make(family, model, monkeypatch, calls):
    inputs = pages(family, monkeypatch)
    method = sc.PixelPrune(threshold=0.1, metric="mae")
    encoded = encode(model, inputs, method=method)
    prompt = shorten(model, inputs, encoded, choose_each(method, encoded), generating=False)
    with attach(model, method), calls(model) as seen:
        model(**inputs)
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(prompt.embeds, seen[0]["inputs_embeds"])
    assert torch.equal(prompt.positions, seen[0]["position_ids"])
    assert len(seen) == 4


def test_frames_of_a_video_are_cut_one_by_one(family, model):
    inputs = family.video()
    patches = inputs["pixel_values_videos"]
    frame = len(patches) // 3
    patches[4:frame] = patches[:4].repeat(
        frame // 4 - 1, 1
    )  # The first frame is one cell repeated.
    with torch.no_grad(), attach(model, sc.PixelPrune()) as att:
        model(**inputs)
    cells = frame // 4
    assert att.last.kept[0].tolist() == [0, *range(cells, 3 * cells)]


def test_other_encoders_read_all_or_refuse(cases):
    case = cases["llava"]()
    model, inputs = case.model(), case.inputs()
    with attach(model, sc.PixelPrune()) as att:
        model(**inputs)
    assert len(att.last.kept[0]) == 16
    message = r"PixelPrune drops cells before they are encoded, and the encoder of LLaVA-1\.5"
    with pytest.raises(ValueError, match=message):
        attach(model, sc.PixelPrune(before="encoder"))


FAMILIES_OF_MODELS = {adapter_of(name).family.name: adapter_of(name).family for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES_OF_MODELS.values(), ids=FAMILIES_OF_MODELS)
def test_every_family_skips_or_says_that_it_does_not(family):
    assert family.skips == family.name.startswith("Qwen")
    method = sc.PixelPrune(before="encoder")
    if family.skips:
        assert wanted(method, family, None) == {"pixels", "grid"}
    else:
        with pytest.raises(ValueError, match=f"and the encoder of {family.name} does not do"):
            wanted(method, family, None)
