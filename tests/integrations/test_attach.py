"""Around the contract: guidance, text encoders, videos, reports, refusals, other people's code."""

import copy
import inspect
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import secateur as sc
from secateur.integrations.attach import attach, encode, prune_inputs
from secateur.integrations.text import Guidance
from secateur.integrations.transformers import internals
from secateur.integrations.transformers.models import FAMILIES, UnsupportedModelError, family_of

GREEDY = {"max_new_tokens": 5, "do_sample": False}
WORDS = "how many red dog ?"


@pytest.fixture(scope="module")
def llava(cases):
    case = cases["llava"]()
    return case, case.model()


def instruction(case, model, processor, words=(WORDS,), images=(1,)):
    inputs = case.inputs(words=words, images=images)
    found = encode(model, inputs, processor).text
    tokenizer, ids = case.processor().tokenizer, inputs["input_ids"]
    return [tokenizer.decode(row[own]) for row, own in zip(ids.numpy(), found, strict=True)]


def test_the_instruction_is_found_in_the_prompt(case, model):
    both = (WORDS, "what color is the sky in this ?")
    assert instruction(case, model, case.processor(), both, (1, 2)) == list(both)
    assert instruction(case, model, case.processor(), both, (0, 1)) == list(both)


def test_what_the_tokenizer_puts_first_is_passed_over(llava):
    """A template starts after the token that begins every text."""
    case, model = llava
    guidance = Guidance(model, family_of(model), case.processor(), None, None)
    ids = case.inputs(words=(WORDS,))["input_ids"].numpy()
    ids = np.concatenate([[[1]], ids], axis=1)
    found = guidance.find(ids, np.ones(ids.shape, dtype=bool), ids == 4)
    assert case.processor().tokenizer.decode(ids[found]) == WORDS


def test_without_a_template_what_comes_before_the_image_is_the_system_prompt(llava):
    case, model = llava
    assert instruction(case, model, None) == [f"{WORDS} ASSISTANT :"]


def test_a_prompt_without_words_asks_for_an_instruction(llava):
    case, model = llava
    inputs = case.inputs(words=("",))
    ids = inputs["input_ids"]
    keep = torch.isin(ids, torch.tensor([1, 4]))
    inputs |= {"input_ids": ids[keep][None], "attention_mask": torch.ones(1, int(keep.sum()))}
    refused = pytest.raises(ValueError, match=r"prompt 0 has no words .* pass instruction=")
    with attach(model, sc.EADP(keep=4), case.processor()), refused:
        model(**inputs)
    with attach(model, sc.EADP(keep=4), case.processor(), instruction="red dog") as att:
        model(**inputs)
    assert len(att.last.kept[0]) == 4


def test_guidance_in_the_language_models_space_is_the_cores(case, model):
    """What an attachment chooses is what the core chooses from the same arrays."""
    inputs, processor = case.inputs(words=(WORDS,)), case.processor()
    method = sc.EADP(keep=0.25)
    with attach(model, method, processor) as att:
        model(**inputs)
    visuals = family_of(model).encode(model, inputs, frozenset(), None, None)
    (visual,) = visuals
    if visual.crops:
        assert (
            sum(part.budget for part in att.last.pictures[0])
            == sum(len(part.index) for part in visual.parts) // 4
        )
        return
    words = processor.tokenizer(WORDS, add_special_tokens=False, return_tensors="pt")["input_ids"]
    text = model.get_input_embeddings()(words[0]).detach()
    part = visual.parts[0]
    features = visual.features.detach()[torch.from_numpy(part.index)]
    tokens = sc.Tokens(features=features, grid=part.grid, text=text, text_global=text.mean(0))
    expected = method.select(tokens)
    marks = [place for place, _ in visual.separators]
    assert np.array_equal(
        np.setdiff1d(att.last.kept[0], marks), part.index[expected.sorted().numpy()]
    )
    np.testing.assert_allclose(att.last.scores[0][part.index], expected.scores.numpy())


def clip(width=32, **text):
    config = transformers.CLIPConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 128,
            "max_position_embeddings": 8,
            "eos_token_id": 2,
            "bos_token_id": 1,
            **text,
        },
        projection_dim=20,
    )
    torch.manual_seed(3)
    return transformers.CLIPModel(config).eval()


def test_a_text_encoder_compares_in_its_own_space(llava):
    case, model = llava
    encoder, processor = clip(), case.processor()
    inputs = case.inputs(words=(WORDS,))
    method = sc.EADP(keep=5)
    with attach(model, method, processor, (encoder, processor.tokenizer)) as att:
        model(**inputs)
    with torch.no_grad():
        tower = model.model.vision_tower
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        embeds = encoder.visual_projection(tower.post_layernorm(states))[0]
        ids = processor.tokenizer(WORDS, return_tensors="pt")["input_ids"]
        out = encoder.text_model(input_ids=ids)
        text = encoder.text_projection(out.last_hidden_state)[0]
        whole = encoder.text_projection(out.pooler_output)[0]
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    mask = ~torch.isin(ids[0], torch.tensor(processor.tokenizer.all_special_ids))
    expected = method.select(
        sc.Tokens(
            features=features,
            embeds=embeds,
            grid=(4, 4),
            text=text,
            text_global=whole,
            text_mask=mask,
        )
    )
    assert np.array_equal(att.last.kept[0], expected.sorted().numpy())
    np.testing.assert_allclose(att.last.scores[0], expected.scores.numpy(), rtol=1e-5)


def test_a_siglip_text_encoder_compares_without_projections(llava):
    """SigLIP's text goes through the head of its last layer, its patches through the last norm."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    vision = {**shape, "image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    encoder = transformers.SiglipModel(
        transformers.SiglipConfig(
            vision_config=vision,
            text_config={**shape, "vocab_size": 128, "max_position_embeddings": 8},
        )
    ).eval()
    stock = llava[1]
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision),
        text_config=copy.deepcopy(stock.config.text_config),
        image_token_id=4,
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    processor = llava[0].processor()
    inputs = llava[0].inputs(words=(WORDS,))
    method = sc.EADP(keep=5)
    with attach(model, method, processor, (encoder, processor.tokenizer)) as att:
        model(**inputs)
    with torch.no_grad():
        tower = model.model.vision_tower
        states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1]
        read = processor.tokenizer(WORDS, return_tensors="pt", padding="max_length", max_length=8)
        ids = read["input_ids"]
        out = encoder.text_model(input_ids=ids)
        text = encoder.text_model.head(out.last_hidden_state)[0]
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    assert int((ids == processor.tokenizer.pad_token_id).sum()) == 3
    expected = method.select(
        sc.Tokens(
            features=features,
            embeds=tower.post_layernorm(states)[0].detach(),
            grid=(4, 4),
            text=text,
            text_global=out.pooler_output[0],
            text_mask=~torch.isin(ids[0], torch.tensor(processor.tokenizer.all_special_ids)),
        )
    )
    assert np.array_equal(att.last.kept[0], expected.sorted().numpy())
    np.testing.assert_allclose(att.last.scores[0], expected.scores.numpy(), rtol=1e-5)


def test_long_instructions_are_read_in_windows(llava):
    case, model = llava
    encoder, processor = clip(), case.processor()
    words = "what color is the red dog in the picture and how many cat does this show ?"
    pair = (encoder, processor.tokenizer)
    with attach(model, sc.EADP(keep=5), processor, pair, instruction=words) as att:
        model(**case.inputs())
        text = att._reader.guidance.encoder.encode(words)
    assert len(text.tokens) == 3
    assert all(len(each) <= 8 for each in text.tokens)
    assert sum(int(mask.sum()) for mask in text.mask) == len(words.split())


def test_text_encoders_that_do_not_fit_are_refused(llava, cases):
    case, model = llava
    processor = case.processor()
    with pytest.raises(ValueError, match=r"vision side is a clip_vision_model of width 16, .* 32"):
        attach(model, sc.EADP(), processor, (clip(16), processor.tokenizer))
    with pytest.raises(ValueError, match=r"expected \(model, tokenizer\)"):
        attach(model, sc.EADP(), processor, clip())
    with pytest.raises(ValueError, match="expected a CLIPModel or a SiglipModel"):
        attach(model, sc.EADP(), processor, (torch.nn.Linear(1, 1), processor.tokenizer))
    with pytest.raises(ValueError, match="pass processor= too"):
        attach(model, sc.EADP(), None, (clip(), processor.tokenizer))
    qwen = cases["qwen2_5_vl"]().model()
    with pytest.raises(ValueError, match=r"Qwen2.5-VL was not trained beside a text encoder"):
        attach(qwen, sc.EADP(), processor, (clip(), processor.tokenizer))


FURTHER = [pytest.param(name, marks=pytest.mark.families) for name in ("glm4v", "qwen3_5")]


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", *FURTHER])
def test_videos_keep_tokens_of_every_frame(cases, by_norm, by_hand, name):
    case = cases[name]()
    model = case.model()
    inputs = case.video(frames=3)
    stock = model.generate(**inputs, **GREEDY)
    logits = model(**inputs).logits
    with attach(model, by_norm(keep=100)):
        assert torch.equal(model.generate(**inputs, **GREEDY), stock)
        assert torch.equal(model(**inputs).logits, logits)
    with attach(model, by_norm(keep=2)) as att:
        pruned = model(**inputs).logits
        out = model.generate(**inputs, **GREEDY)
    assert [part.budget for part in att.last.pictures[0]] == [2, 2, 2]
    assert att.last.modalities == ["video"]
    torch.testing.assert_close(
        pruned, by_hand(model, inputs, att.last.positions), rtol=1e-4, atol=1e-4
    )
    with attach(model, sc.TopK(keep=2)) as att:
        model(**inputs)
    for part in att.last.pictures[0]:
        best = np.sort(np.argsort(-part.scores, kind="stable")[:2])
        assert np.array_equal(np.flatnonzero(part.kept), best)
    takes = inspect.signature(type(model).forward).parameters
    if name == "qwen3_vl" and "mm_encoder_outputs" not in takes:
        with pytest.raises(ValueError, match="takes no mm_encoder_outputs"):
            prune_inputs(model, inputs, by_norm(keep=2))
        return
    small = prune_inputs(model, inputs, by_norm(keep=2))
    assert torch.equal(model.generate(**small, **GREEDY)[:, -5:], out[:, -5:])


def test_merging_methods_fold_into_the_features(llava):
    case, model = llava
    inputs = case.inputs()
    method = sc.VisionZip(keep=6, contextual=0.5)
    with attach(model, method) as att:
        ours = model(**inputs).logits
    small = prune_inputs(model, inputs, method)
    ids = inputs["input_ids"][0, torch.from_numpy(att.last.positions[0])]
    merged = small["inputs_embeds"][0, ids == 4]
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    plain = features[torch.from_numpy(att.last.kept[0])]
    assert merged.shape == plain.shape == (6, 48)
    assert not torch.allclose(merged, plain, atol=1e-4)
    theirs = model(**{k: v for k, v in small.items() if k != "input_ids"}).logits
    torch.testing.assert_close(ours, theirs)


def test_crops_share_a_budget_by_their_scores(cases):
    case = cases["llava_next"]()
    model, inputs = case.model(), case.inputs()
    with attach(model, sc.TopK(keep=4)) as att:
        model(**inputs)
    parts = att.last.pictures[0]
    crops = family_of(model).encode(model, inputs, frozenset(), None, None)[0].crops
    assert sum(part.budget for part in parts) == 4 * crops
    weights = np.array([part.scores.sum() for part in parts])
    sizes = np.array([part.kept.size for part in parts])
    expected = sc.allocate(weights, 4 * crops, minimum=1, maximum=sizes)
    assert [part.budget for part in parts] == expected.tolist()
    kept = set(att.last.kept[0].tolist())
    visual = family_of(model).encode(model, inputs, frozenset(), None, None)[0]
    for place, marked in visual.separators:
        assert (place in kept) == bool(kept & set(marked.tolist()))


def test_of_each_crop_is_chosen_once(cases):
    @dataclass(frozen=True)
    class Counting(sc.TopK):
        def choose(self, tokens, k):
            asked.append(k)
            return super().choose(tokens, k)

    case, asked = cases["llava_next"](), []
    model, inputs = case.model(), case.inputs()
    with attach(model, Counting(keep=4)) as att:
        model(**inputs)
    assert asked == [part.budget for part in att.last.pictures[0]]
    assert len(set(asked)) > 1


def test_eadps_own_crops_become_parts(cases):
    """EADP(crops="importance") is for arrays of equal crops; attached it is what always happens."""
    case = cases["llava_next"]()
    model, inputs, processor = case.model(), case.inputs(), case.processor()
    kept = []
    for crops in (None, "importance"):
        with attach(model, sc.EADP(keep=4, crops=crops), processor) as att:
            model(**inputs)
        kept.append(att.last.kept[0])
    assert np.array_equal(*kept)


def test_the_report_tells_what_was_kept(case, model):
    inputs = case.inputs(words=(WORDS, "what ?"), images=(2, 1))
    with attach(model, sc.TopK(keep=3)) as att:
        model.generate(**inputs, **GREEDY)
    report = att.last
    assert len(report.kept) == len(report.scores) == len(report.grids) == 3
    for kept, scores, parts in zip(report.kept, report.scores, report.pictures, strict=True):
        assert (np.diff(kept) > 0).all()
        for part in parts:
            assert part.kept.size == part.grid[0] * part.grid[1]
            own = scores[part.index]
            assert np.array_equal(own, part.scores)
            assert own[part.kept].min() >= own[~part.kept].max(initial=0)
    assert set(report.milliseconds) == {"encode", "choose", "compact"}
    assert all(spent >= 0 for spent in report.milliseconds.values())
    assert repr(report).startswith(f"Report(kept {sum(p.budget for p in report.pictures[0])} of ")
    before, after = report.prompt_length
    assert f"prompt {before} -> {after}" in repr(report)


def test_the_overlay_dims_what_was_dropped(llava):
    case, model = llava
    picture = case.images(1)[0].resize((96, 64))
    with attach(model, sc.TopK(keep=4)) as att:
        model(**case.inputs())
    shown = np.asarray(att.last.overlay(picture, edge=0)).astype(int)
    assert shown.shape == (64, 96, 3)
    before = np.asarray(picture).astype(int)
    kept = att.last.pictures[0][0].kept.reshape(4, 4).repeat(16, 0).repeat(24, 1)
    assert np.array_equal(shown[kept], before[kept])
    assert shown[~kept].max() <= 0.25 * 255 + 1
    edged = np.asarray(att.last.overlay(np.asarray(picture)))
    assert (edged == (255, 140, 0)).all(axis=-1).sum() > 0


def test_the_overlay_frames_what_was_left_after_the_last_cut(llava):
    case, model = llava
    picture = Image.new("RGB", (64, 64), "white")
    with attach(model, sc.PyramidDrop(keep=6)) as att:
        model(**case.inputs())
    report = att.last
    first, *cuts = report.stages()
    assert first.after == 0
    assert first.kept.all()
    assert [(cut.after, cut.kept.sum()) for cut in cuts] == [
        (after, len(left)) for after, left in report.inside[0]
    ]
    shown = np.asarray(report.overlay(picture, edge=0))[8::16, 8::16, 0].ravel()
    survived = np.sum([stage.kept for stage in report.stages()], axis=0)
    assert (shown[cuts[-1].kept] == 255).all()
    by_stage = [shown[survived == n] for n in range(1, 2 + len(cuts))]
    assert all(len(set(each)) == 1 for each in by_stage if len(each))
    assert (np.diff([each[0] for each in by_stage if len(each)].copy()) > 0).all()
    edged = np.asarray(report.overlay(picture))
    framed = (edged == (255, 140, 0)).all(axis=-1).reshape(4, 16, 4, 16).any(axis=(1, 3)).ravel()
    assert np.array_equal(framed, cuts[-1].kept), "no line runs over to the other side"


def test_the_overlay_of_a_video_is_a_strip_with_a_timeline(cases):
    case = cases["qwen2_5_vl"]()
    model = case.model()
    with attach(model, sc.EVS(keep=0.5)) as att:
        model(**case.video(frames=3))
    parts = att.last.pictures[0]
    counts = [part.budget for part in parts]
    assert counts[0] == parts[0].kept.size
    assert 0 < counts[1] < counts[0]
    pictures = [case.images(1, seed)[0].resize((96, 72)) for seed in range(6)]
    paper = np.asarray(att.last.overlay(pictures))
    for number, count in enumerate(counts):
        # Two pictures are one frame to Qwen; of each pair the first is shown.
        x = 4 + 100 * number
        own = np.asarray(att.last.overlay(pictures[2 * number], part=number))
        assert np.array_equal(paper[4:76, x : x + 96], own)
        bar = (paper[80:105, x + 48] == (255, 140, 0)).all(axis=-1).sum()
        assert bar == (round(24 * count / counts[0]) + 1 if count else 0)
    assert np.array_equal(np.asarray(att.last.overlay(np.stack(pictures))), paper)
    with pytest.raises(ValueError, match="5 frames for 3 that the model read"):
        att.last.overlay(pictures[:5])


def test_unknown_models_are_refused_with_the_list():
    with pytest.raises(UnsupportedModelError, match="cannot attach to Linear") as error:
        attach(torch.nn.Linear(2, 2), sc.TopK())
    assert all(name in str(error.value) for name in FAMILIES)


def test_wrapped_and_compiled_models_are_refused(llava):
    _case, model = llava
    with pytest.raises(UnsupportedModelError, match=r"attach to model\._orig_mod, then"):
        attach(torch.compile(model, backend="eager"), sc.TopK())
    with pytest.raises(UnsupportedModelError, match=r"attach to model\.module, then"):
        attach(torch.nn.DataParallel(model), sc.TopK())
    compiled = copy.deepcopy(model)
    compiled.compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="attach first, then compile"):
        attach(compiled, sc.TopK())
    with pytest.raises(ValueError, match="method: expected a method such as"):
        attach(model, "topk")
    with pytest.raises(ValueError, match="positions: expected original, compact or None"):
        attach(model, sc.TopK(), positions="shifted")


def test_detaching_under_another_patch_is_refused(llava):
    _, model = llava
    att = attach(model, sc.TopK())
    ours = model.forward
    model.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(RuntimeError, match="forward of the model was replaced after attaching"):
        att.detach()
    model.forward = ours
    att.detach()
    assert "forward" not in model.__dict__


def test_a_compiled_decoding_step_does_not_see_the_attachment(llava, by_norm):
    """What generate() compiles for static caches on a GPU is traced in one graph."""
    _case, model = llava
    with attach(model, by_norm(keep=3)):
        step = torch.compile(model.__call__, backend="eager", fullgraph=True)
        ids = torch.tensor([[13, 14, 15]])
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(step(input_ids=ids, use_cache=False).logits, expected)


def test_pipelines_prune(llava):
    case, model = llava
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=case.processor())
    call = {
        "images": case.images(1),
        "text": case.text(WORDS),
        "generate_kwargs": GREEDY,
        "return_full_text": False,
    }
    stock = pipe(**call)
    with attach(model, sc.TopK(keep=1000)):
        assert pipe(**call) == stock
    with attach(model, sc.TopK(keep=3)) as att:
        found = pipe(**call)
    assert att.last.prompt_length[0] - att.last.prompt_length[1] == 13
    assert isinstance(found[0]["generated_text"], str)


def test_threads_do_not_mix_prompts(llava, by_norm):
    case, model = llava
    prompts = [case.inputs(seed=n) for n in range(3)]
    with attach(model, by_norm(keep=4)):
        expected = [model.generate(**each, **GREEDY) for each in prompts]
        found = [None] * 3

        def work(n):
            found[n] = model.generate(**prompts[n], **GREEDY)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_device_maps(llava, by_norm):
    from accelerate import dispatch_model

    case, _ = llava
    model = case.model()
    inputs = case.inputs()
    with attach(model, by_norm(keep=4)):
        expected = model.generate(**inputs, **GREEDY)
    spread = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"}
    spread |= {"model.language_model": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(model, spread, main_device="cpu", force_hooks=True)
    before = dispatched.__dict__.get("forward")
    assert before is not None
    with attach(dispatched, by_norm(keep=4)):
        assert torch.equal(dispatched.generate(**inputs, **GREEDY), expected)
    assert dispatched.__dict__["forward"] is before


def test_flash_attention_reads_gaps_in_positions_as_one_sequence():
    """Flash attention takes a batch of one with gaps for packed; it must find one sequence."""
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    positions = torch.tensor([[0, 1, 2, 7, 9, 12, 30, 31]])
    (queries, keys), (longest, _) = prepare_fa_kwargs_from_position_ids(positions)
    assert queries.tolist() == keys.tolist() == [0, 8]
    assert int(longest) == 8


def test_transformers_still_has_what_we_rely_on():
    gone = internals.missing()
    assert not gone, (
        f"transformers {transformers.__version__} no longer has {', '.join(gone)}; "
        f"{internals.__name__} was checked against {' to '.join(internals.CHECKED)}"
    )


def test_a_newer_transformers_is_told_once(monkeypatch):
    """And one that was checked is not."""
    major, minor = (int(x) for x in internals.CHECKED[1].split("."))
    internals.check_release.cache_clear()
    monkeypatch.setattr("transformers.__version__", f"{major}.{minor + 1}.0.dev0")
    with pytest.warns(UserWarning, match=r"is newer than .*, the newest that secateur was"):
        internals.check_release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        internals.check_release()
        internals.check_release.cache_clear()
        monkeypatch.setattr("transformers.__version__", f"{major}.{minor}.1")
        internals.check_release()
    internals.check_release.cache_clear()


def test_a_cache_goes_by_either_name():
    cache, other = object(), object()
    for name in internals.CACHES:
        named = internals.naming_the_cache({name: cache, "use_cache": True})
        assert named == {internals.cache_name(): cache, "use_cache": True}
    assert internals.naming_the_cache({"use_cache": True}) == {"use_cache": True}
    assert internals.cache_in(internals.naming_the_cache({"cache": None})) is None
    with pytest.raises(ValueError, match="cache: another one was given as past_key_values"):
        internals.naming_the_cache({"cache": cache, "past_key_values": other})


def test_the_public_names_are_there():
    assert sc.attach is attach
    assert sc.prune_inputs is prune_inputs
    assert sc.UnsupportedModelError is UnsupportedModelError


def test_importing_secateur_loads_no_torch():
    probe = "import secateur, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
