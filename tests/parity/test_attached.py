"""Attached to a model, what the authors' program does in that model: pixels in, tokens out.

Every file of `data/attached` is one run of an authors' program in a small model. `calls.py` there
says by which name and settings it is asked for; nothing else is told to `attach`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.integrations.text import TextEncoder

DATA = Path(__file__).parent / "data" / "attached"
STEMS = sorted(
    str(each.relative_to(DATA).with_suffix(""))
    for each in DATA.glob("**/*.npz")
    if each.parent.name != "models"
)
CLOSE = {"rtol": 0.0, "atol": 1e-3}


def _loaded():
    spec = importlib.util.spec_from_file_location("attached_calls", DATA / "calls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


calls = _loaded()


def cases(*begins):
    """Those of the files, marked where ours is known to differ."""
    for stem in STEMS:
        if stem.startswith(begins):
            yield pytest.param(stem, id=stem)


class Case(dict):
    """The arrays of a file."""

    def __init__(self, stem):
        with np.load(DATA / f"{stem}.npz") as stored:
            super().__init__(stored)
        self.files = list(self)


def told(case, name):
    return json.loads(str(case[name]))


class Letters:
    """The tokenizer of the small SigLIP: a token a character, always 64 long."""

    def __call__(self, text, **_):
        ids = [2 + ord(letter) for letter in text][:63]
        return {"input_ids": torch.tensor([ids + [1] * (64 - len(ids))])}


class Numbers:
    """A tokenizer that reads ids, for instructions that are recorded as ids."""

    all_special_ids = ()

    def __call__(self, text, **_):
        return {"input_ids": [int(each) for each in text.split()]}


@functools.cache
def llava15(name):
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizerFast,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    models = DATA / "llava15" / "models"
    config = json.loads((models / f"{name}.json").read_text())
    words, dim, _ = (
        config.pop(key) for key in ("clip_text_config", "clip_projection_dim", "image_token_index")
    )
    model = LlavaForConditionalGeneration(LlavaConfig(**config)).eval()
    weights = _arrays(models / f"{name}.npz")
    model.load_state_dict(weights)
    vision = config["vision_config"]
    clip = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=dim))
    tower = "model.vision_tower."
    seen = {
        "vision_model." + key[len(tower) :]: x
        for key, x in weights.items()
        if key.startswith(tower)
    }
    clip.load_state_dict(_arrays(models / f"{name}-text.npz") | seen)
    return model, (clip.eval(), CLIPTokenizerFast.from_pretrained(models / "tokenizer"))


def _arrays(path):
    with np.load(path) as stored:
        return {name: torch.from_numpy(stored[name]).float() for name in stored.files}


@functools.cache
def other(kind, config, weights):
    import transformers
    from safetensors.torch import load_file

    model = getattr(transformers, f"{kind}ForConditionalGeneration")(
        getattr(transformers, f"{kind}Config")(**json.loads(config))
    )
    model.load_state_dict({name: x.float() for name, x in load_file(DATA / weights).items()})
    model.generation_config.eos_token_id = None
    return model.float().eval()


def encoder(case, kind):
    """(model, tokenizer) of the text side that the program was given."""
    import transformers
    from safetensors.torch import load_file

    config = getattr(transformers, f"{kind}Config")(**told(case, f"{kind.lower()}_config"))
    model = getattr(transformers, f"{kind}Model")(config)
    weights = load_file(DATA / told(case, f"{kind.lower()}_weights"))
    model.load_state_dict({name: x.float() for name, x in weights.items()})
    if kind == "Siglip":
        return model.eval(), Letters()
    words = (str(DATA / name) for name in ("eadp_clip_vocab.json", "eadp_clip_merges.txt"))
    return model.eval(), transformers.CLIPTokenizer(*words, model_max_length=32)


class Run:
    """Eight tokens of an attached model, and what its language model was called with."""

    def __init__(self, model, method, inputs, **options):
        self.embeds, self.positions, self.caches = [], [], []
        self.turned = []
        decoder = self.decoder = model.model.language_model
        hooks = [
            decoder.register_forward_pre_hook(self._called, with_kwargs=True),
            decoder.register_forward_hook(self._done, with_kwargs=True),
            *(
                layer.self_attn.register_forward_pre_hook(self._turned, with_kwargs=True)
                for layer in decoder.layers
            ),
        ]
        try:
            with torch.no_grad(), sc.attach(model, method, **options) as attached:
                out = model.generate(
                    **inputs,
                    max_new_tokens=8,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
                self.report = attached.last
        finally:
            for hook in hooks:
                hook.remove()
        self.tokens = out.sequences[0, -8:].numpy()
        self.logits = torch.stack(out.logits)[:, 0].numpy()

    def check_positions(self, step, layer, expected):
        """That a layer was called, at a step, with the angles of these positions."""
        at = torch.from_numpy(np.asarray(expected))[None]
        angles = self.decoder.rotary_emb(torch.zeros(1), at)
        for found, told in zip(self.turned[step][layer], angles, strict=True):
            torch.testing.assert_close(found, told, rtol=0, atol=1e-5)

    def _turned(self, _module, _args, kwargs):
        self.turned[-1].append(kwargs["position_embeddings"])

    def _called(self, _module, _args, kwargs):
        self.turned.append([])
        self.embeds.append(kwargs["inputs_embeds"].numpy())
        self.positions.append(kwargs["position_ids"].numpy())

    def _done(self, _module, _args, kwargs, _out):
        cache = kwargs.get("past_key_values", kwargs.get("cache"))
        self.caches.append([layer.keys.shape[-2] for layer in cache.layers])


def method_of(stem, case):
    name, settings = calls.call(case, Path(stem).name)
    return sc.published(name, **settings)


def run_llava15(stem):
    case = Case(stem)
    model, text = llava15(str(case["model"]))
    ids = torch.from_numpy(case["input_ids"])[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(case["pixel_values"].astype("float32")),
    }
    options = {}
    if "text_encoder" in calls.needs(case):
        options = {"text_encoder": text, "instruction": calls.instruction(case)}
    method = sc.DivPrune(keep=1.0) if stem.startswith("llava15/un") else None
    return case, Run(model, method or method_of(stem, case), inputs, **options)


def check_answer(case, run, first="first_logits", steps="token_logits", tokens="tokens"):
    np.testing.assert_allclose(run.logits[0], case[first], **CLOSE)
    np.testing.assert_array_equal(run.tokens, case[tokens])
    np.testing.assert_allclose(run.logits, case[steps], **CLOSE)
    assert run.caches[0] == case["cache_lengths"].tolist()


IMAGE_AT = 35


def visual_of(case, run):
    return run.embeds[0][0, IMAGE_AT : IMAGE_AT + len(case["visual"])]


BEFORE = (
    "llava15/cdpruner",
    "llava15/divprune",
    "llava15/eadp",
    "llava15/hiprune",
    "llava15/prumerge",
    "llava15/unpruned",
    "llava15/visionzip",
    "llava15/vispruner",
)
INSIDE = ("llava15/fastv", "llava15/pyramiddrop", "llava15/sparsevlm")


@pytest.mark.parametrize("stem", cases(*BEFORE))
def test_before_the_language_model(stem):
    case, run = run_llava15(stem)
    (picture,) = run.report.pictures[0]
    kept = np.flatnonzero(picture.kept)
    np.testing.assert_array_equal(run.report.kept[0], kept)
    if "targets" in case.files:  # VisionZip: among its dominant tokens, contextual ones
        dropped = np.setdiff1d(np.arange(576), case["kept"])
        assert set(case["kept"]) <= set(kept)
        assert len(kept) == len(case["kept"]) + len(case["targets"]), dropped
    else:
        np.testing.assert_array_equal(kept, case["kept"])
    np.testing.assert_allclose(visual_of(case, run), case["visual"], **CLOSE)
    np.testing.assert_array_equal(run.positions[0].ravel(), case["positions"])
    if len(case["next_positions"]):
        following = [int(each.ravel()[0]) for each in run.positions[1:]]
        assert following == case["next_positions"][:, 0].tolist()
    if "importance" in case.files:
        np.testing.assert_allclose(picture.scores, case["importance"], rtol=0, atol=2e-5)
    check_answer(case, run)
    assert run.caches[-1] == case["cache_lengths_last"].tolist()


@pytest.mark.parametrize("stem", cases(*INSIDE))
def test_inside_the_language_model(stem):
    case, run = run_llava15(stem)
    cuts = [
        (int(case[f"inside_{n}_after"]), case[f"inside_{n}_kept"])
        for n in range(3)
        if f"inside_{n}_after" in case.files
    ]
    assert [after for after, _ in run.report.inside[0]] == [after for after, _ in cuts]
    for (_, ours), (_, theirs) in zip(run.report.inside[0], cuts, strict=True):
        made = ours < 0
        np.testing.assert_array_equal(np.where(made, -1, ours - IMAGE_AT), theirs)
    np.testing.assert_allclose(run.logits[0], case["first_logits"], **CLOSE)
    if "kept_by_token" in case.files:
        return  # chosen again at every token, without a cache: no attachment does that
    check_answer(case, run)
    assert run.caches[-1] == case["cache_lengths_last"].tolist()
    layers = {
        name.removeprefix("positions_layer_"): case[name]
        for name in case.files
        if name.startswith("positions_layer_")
    }
    for layer, positions in {"0": case["positions"], **layers}.items():
        run.check_positions(0, int(layer), positions.ravel())
    # What 1.0 hands on of the next tokens' positions is not what its layers use.
    counted = run.caches[:-1] if "sparsevlm_v1" in stem else case["next_positions"]
    for step, following in enumerate(counted, 1):
        for layer, position in enumerate(following):
            run.check_positions(step, layer, [position])


def run_qwen(stem, kind):
    case = Case(stem)
    model = other(kind, str(case["config"]), told(case, "weights"))
    ids = torch.from_numpy(case["input_ids"])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(case["pixel_values"]),
        "image_grid_thw": torch.from_numpy(case["image_grid_thw"]),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }
    options = {}
    if "instruction_ids" in case.files:
        said = " ".join(str(each) for each in case["instruction_ids"].ravel())
        options = {"processor": Numbers(), "instruction": said}
    return case, Run(model, method_of(stem, case), inputs, **options)


def check_qwen(case, run):
    np.testing.assert_array_equal(run.positions[0][-3:], case["position_ids"][-3:])
    check_answer(case, run, "logits", "step_logits", "next_tokens")


@pytest.mark.parametrize("stem", cases("erase_qwen25", "erase_qwen3"))
def test_erase(stem):
    case, run = run_qwen(stem, "Qwen2_5_VL" if "qwen25" in stem else "Qwen3VL")
    starts = np.cumsum([0, *(sum(part.kept.size for part in own) for own in run.report.pictures)])
    kept = np.concatenate([own + at for own, at in zip(run.report.kept, starts, strict=False)])
    np.testing.assert_array_equal(kept, case["stage1_kept"])
    if stem == "erase_qwen3_two_images":
        return  # the program gives the second image deepstack rows of the first
    columns = np.flatnonzero(case["input_ids"][0] == told(case, "config")["image_token_id"])
    cut = int(case["layers_run_before_cut"])
    assert [after for after, _ in run.report.inside[0]] == [cut] * (cut >= 0)
    if cut >= 0:
        ((_, left),) = run.report.inside[0]
        np.testing.assert_array_equal(np.searchsorted(columns, left), case["stage2_kept"])
    check_qwen(case, run)


@pytest.mark.parametrize("stem", cases("eadp_qwen25"))
def test_eadp_in_qwen(stem):
    case, run = run_qwen(stem, "Qwen2_5_VL")
    for number, (kept, scores) in enumerate(zip(run.report.kept, run.report.scores, strict=True)):
        np.testing.assert_array_equal(kept, np.sort(case[f"kept_{number}"]))
        np.testing.assert_allclose(scores, case[f"importance_{number}"], rtol=0, atol=2e-5)
    check_qwen(case, run)


@pytest.mark.parametrize("stem", cases("eadp_next"))
def test_eadp_in_llava_next(stem):
    """Kept tokens, budgets and maps: transformers adds newlines, so logits cannot be equal."""
    case = Case(stem)
    model = other("LlavaNext", str(case["config"]), told(case, "weights"))
    pictures = torch.from_numpy(case["pixel_values"])
    sizes = torch.from_numpy(case["image_sizes"])
    with torch.no_grad():
        (features,) = model.model.get_image_features(
            pictures, image_sizes=sizes, return_dict=True
        ).pooler_output
    inputs = placed(case, model.config.image_token_id, len(features))
    inputs |= {"pixel_values": pictures, "image_sizes": sizes}
    text = encoder(case, "CLIP")
    said = calls.instruction(case)
    run = Run(model, method_of(stem, case), inputs, text_encoder=text, instruction=said)
    parts = run.report.pictures[0]
    assert [part.budget for part in parts] == case["mask"].sum(axis=1).tolist()
    for part, mask, scores in zip(parts, case["mask"], case["importance"], strict=True):
        np.testing.assert_allclose(part.scores, scores, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(part.kept, mask)
    height, width = case["image_sizes"][0]
    assert any((part.index < 0).any() for part in parts) == (height != width)
    # Of the unpadded picture goes on what was kept of it, each row with its newline.
    shown = [part.index[part.kept & (part.index >= 0)] for part in parts]
    newlines = np.ones(len(features), dtype=bool)
    newlines[np.concatenate([part.index[part.index >= 0] for part in parts])] = False
    kept = run.report.kept[0]
    np.testing.assert_array_equal(kept[~newlines[kept]], np.sort(np.concatenate(shown)))
    at = int(np.flatnonzero(case["input_ids"][0] == -200)[0])
    handed = run.embeds[0][0, at : at + len(kept)]
    np.testing.assert_array_equal(handed, features[torch.from_numpy(kept)].numpy())


@pytest.mark.parametrize(("size", "keep"), [((144, 100), 24), ((40, 144), 50), ((20, 144), 600)])
@torch.no_grad()
def test_padded_crops_are_chosen_from_as_arrays_are(size, keep):
    """Which of them go on, told by numbers that the model unpads as it does features."""
    case = Case("eadp_next_padded")
    model = other("LlavaNext", str(case["config"]), told(case, "weights"))
    noise = np.random.default_rng(keep).normal(size=case["pixel_values"].shape)
    pictures = torch.from_numpy(case["pixel_values"] + 0.3 * noise.astype("float32"))
    sizes, own = torch.tensor([size]), model.model
    states = own.vision_tower(pictures[0], output_hidden_states=True).hidden_states[-2][:, 1:]
    text, said = encoder(case, "CLIP"), "what is on the red bus?"
    read = TextEncoder(*text, "window")
    words = read.encode(said)
    tokens = sc.Tokens(
        features=own.multi_modal_projector(states),
        embeds=read.project(own.vision_tower, states),
        grid=(24, 24),
        text=words.tokens,
        text_global=words.whole,
    )
    expected = sc.published("eadp", keep=keep, crops="importance").select(tokens).mask().numpy()
    numbers = 1.0 + torch.arange(expected.size).view(*expected.shape, 1)
    (numbers,), _ = own.pack_image_features([numbers], sizes, "default", torch.zeros(1))
    numbers = numbers.ravel().long().numpy() - 1  # -1 at newlines
    inputs = placed(case, model.config.image_token_id, len(numbers))
    inputs |= {"pixel_values": pictures, "image_sizes": sizes}
    run = Run(model, sc.published("eadp", keep=keep), inputs, text_encoder=text, instruction=said)
    np.testing.assert_array_equal([part.kept for part in run.report.pictures[0]], expected)
    kept = run.report.kept[0]
    stays = (numbers >= 0) & expected.ravel()[numbers]
    np.testing.assert_array_equal(kept[numbers[kept] >= 0], np.flatnonzero(stays))


@pytest.mark.parametrize("stem", cases("eadp_video"))
def test_eadp_in_llava_video(stem):
    """Kept tokens and maps: transformers adds a newline, so logits cannot be equal."""
    case = Case(stem)
    model = other("LlavaOnevision", str(case["config"]), told(case, "weights"))
    frames = torch.from_numpy(case["pixel_values_videos"])
    size = int(np.prod(case["grid"]))
    inputs = placed(case, model.config.video_token_id, len(frames) * size + 1)
    inputs |= {"pixel_values_videos": frames[None]}
    text = encoder(case, "Siglip")
    said = calls.instruction(case)
    run = Run(model, method_of(stem, case), inputs, text_encoder=text, instruction=said)
    parts = run.report.pictures[0]
    for part, kept, scores in zip(parts, case["kept"], case["importance"], strict=True):
        np.testing.assert_allclose(part.scores, scores, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(np.flatnonzero(part.kept), np.sort(kept))


def placed(case, token, count):
    """The program's prompt, with `count` placeholders for its one."""
    ids = case["input_ids"][0]
    at = int(np.flatnonzero(ids == -200)[0])
    row = np.concatenate([ids[:at], np.full(count, token), ids[at + 1 :]])
    ids = torch.from_numpy(row)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_no_file_is_left_out():
    held = (*BEFORE, *INSIDE, "erase_qwen25", "erase_qwen3", "eadp_qwen25", "eadp_next", "eadp_vid")
    assert [stem for stem in STEMS if not stem.startswith(held)] == []
    assert len(STEMS) == 57
