"""vLLM with the plug-in writes what transformers writes with the same method attached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import TOKENS, engine, picture
from vllm import SamplingParams

import secateur as sc
from secateur.integrations.families.newlines import SETTING
from secateur.integrations.vllm import overrides

LENGTH = 32
GREEDY = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True)
SEEN = [
    sc.TopK(keep=9),
    sc.DivPrune(keep=7),
    sc.VisionZip(keep=12),
    sc.HiPrune(keep=10),
    sc.AgilePruner(keep=8, mean_erank=10.0),
    sc.FPS(keep=0.25),
]
ERASE = sc.ERASE(keep=4, thresholds=(3.6, 3.4, 3.0), ratios=(0.6, 0.5, 0.4, 0.3), patch=8)
EADP = sc.EADP(keep=8)
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
HYBRID = ["qwen3_5", "qwen3_5_moe"]
TILED = ["internvl", "idefics3", "smolvlm"]
GLM = ["glm4v", "glm4v_moe"]
GEMMA = ["gemma3", "gemma4", "gemma4-both-ways"]
FAMILIES = [
    "llava",
    "llava-siglip",
    "llava_next",
    "llava_onevision",
    *TILED,
    *GEMMA,
    "mistral3",
    "pixtral",
    *QWEN,
    *GLM,
]
NEWLINES = ("llava_next", "llava_onevision", "mistral3", "pixtral")
VIDEOS = ("llava_onevision", "internvl", *QWEN, *GLM, *HYBRID)
PLAIN = ("llava_onevision", "internvl", "qwen2_vl")
"""Whose videos vLLM takes without what is told about them."""
USUAL = {
    "idefics3": (),
    "gemma4-both-ways": ("visionzip",),
    "glm4v_moe": (),
    "qwen3_5_moe": (),
    "qwen2_vl": ("topk", "visionzip", "eadp", "erase"),
    "qwen3_vl_moe": ("visionzip",),
}
"""Of families that share another's code, the methods that are not slow."""
MARKS = (10, 11)
"""Of images and videos in prompts of Qwen."""
SIZES = [(60, 90), (48, 48), (90, 40)]


def clip(frames=4):
    """A video as vLLM takes it with its metadata, and as transformers takes it."""
    pictures = np.stack([np.asarray(picture(50 + n, 48, 48)) for n in range(frames)])
    told = {
        "fps": 2.0,
        "duration": frames / 2.0,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return pictures, told


class FirstStage(sc.ERASE):
    """ERASE as vLLM serves it: without the stage inside the language model."""

    def cuts(self, *given, **more):
        return ()


class Request:
    """A prompt with pictures, for both sides."""

    def __init__(self, checkpoint, sizes=(), videos=0, words="what is in the picture ?", seed=0):
        self.checkpoint = checkpoint
        self.images = [picture(seed + n, *size) for n, size in enumerate(sizes)]
        self.videos = [clip() for _ in range(videos)]
        self.text = checkpoint.prompt(words, len(sizes), videos)

    def served(self, instruction=None):
        given = {"prompt": self.text}
        data = {}
        if self.images:
            data["image"] = self.images
        if self.videos:
            plain = self.checkpoint.kind in PLAIN
            data["video"] = [each[0] if plain else each for each in self.videos]
        if data:
            given["multi_modal_data"] = data
        if data and instruction is not None:
            given["mm_processor_kwargs"] = {"instruction": instruction}
        return given

    def inputs(self):
        """What transformers' processor makes of it."""
        own = self.checkpoint
        given = {"text": [self.text], "return_tensors": "pt"}
        if self.images:
            given["images"] = self.images
        if self.videos:
            given["videos"] = [each[0] for each in self.videos]
            given["do_sample_frames"] = False
            if own.placed:
                told = [
                    {k: x for k, x in each[1].items() if k != "do_sample_frames"}
                    for each in self.videos
                ]
                given["video_metadata"] = told
        if own.kind.startswith("gemma") and self.images:
            given["images"] = [self.images]
        inputs = own.processor(**given)
        if own.kind.startswith("gemma"):
            # As vLLM's attention for CPUs sees images: one way.
            name = "token_type_ids" if own.kind == "gemma3" else "mm_token_type_ids"
            inputs[name] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def attached(self, method, instruction=None, newlines="none"):
        """The model with a method attached; untold, vLLM keeps no newlines, so none stay here."""
        own = self.checkpoint
        if own.kind in NEWLINES:
            setattr(own.model.config, SETTING, newlines)
        if isinstance(method, sc.ERASE):
            method = FirstStage(**vars(method))
        positions = "original" if own.placed else "compact"
        how = {} if instruction is None else {"instruction": instruction}
        return sc.attach(own.model, method, own.processor, positions=positions, **how)

    def expected(self, method, instruction=None, newlines="none"):
        """What transformers writes."""
        inputs = self.inputs()
        with torch.no_grad(), self.attached(method, instruction, newlines):
            out = self.checkpoint.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def behind(self, method, answer):
        """How far the tokens of an answer are behind those that transformers likes best."""
        inputs = dict(self.inputs())
        # A random model may write a mark, which a prompt would need pixels for.
        marks = [place for place, token in enumerate(answer) if token in MARKS]
        ids = torch.tensor([answer[: min(marks, default=None)]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
        for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                more = torch.full_like(ids, fill)
                inputs[name] = torch.cat([inputs[name], more], dim=1)
        with torch.no_grad(), self.attached(method):
            logits = self.checkpoint.model(**inputs).logits[0, -ids.numel() - 1 : -1]
        told = logits.log_softmax(dim=-1)
        return float((told.max(dim=-1).values - told.gather(1, ids.T)[:, 0]).max())


def written(llm, requests, instruction=None):
    prompts = [
        each.served(instruction if each.images or each.videos else None) for each in requests
    ]
    out = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in out]


def limits(checkpoint):
    return {"image": 3, **({"video": 1} if checkpoint.kind in VIDEOS else {})}


def half(checkpoint):
    """What an engine needs for linear attention, of which vLLM's for CPUs is in bfloat16."""
    return {"dtype": "bfloat16"} if checkpoint.name in HYBRID else {}


def requests_of(checkpoint):
    """Unlike images, several images, a video, text alone."""
    made = [Request(checkpoint, [size], seed=n) for n, size in enumerate(SIZES)]
    if checkpoint.kind != "llava_onevision":
        # transformers does not cut several images of a OneVision prompt into crops; vLLM does.
        made.append(Request(checkpoint, SIZES[:2], seed=7))
    if checkpoint.kind in VIDEOS:
        made.append(Request(checkpoint, videos=1))
    made.append(Request(checkpoint))
    return made


def methods_of(name):
    yield from SEEN
    yield EADP
    if name not in ("llava_next", "llava_onevision", *GEMMA, *TILED):
        yield replace(ERASE, patch=16) if name in (*QWEN, *GLM) else ERASE


def cases(names, methods=None):
    for name in names:
        for method in methods or methods_of(name):
            usual = method.name in USUAL.get(name, (method.name,))
            marks = () if usual else pytest.mark.slow
            yield pytest.param(name, method, marks=marks, id=f"{name}-{method.name}")


@pytest.mark.parametrize(("name", "method"), cases(FAMILIES))
def test_the_same_tokens(checkpoints, name, method):
    checkpoint = checkpoints(name)
    instruction = "how many red dog" if method == EADP else None
    requests = requests_of(checkpoint)
    with engine(
        checkpoint.folder, method, checkpoint.kind, limit_mm_per_prompt=limits(checkpoint)
    ) as llm:
        got = written(llm, requests, instruction)
        del llm
    want = [
        each.expected(method, instruction if each.images or each.videos else None)
        for each in requests
    ]
    assert got == want
    assert len({tuple(each) for each in got}) >= len(got) - 1


@pytest.mark.parametrize(("name", "method"), cases(HYBRID, SEEN[:2]))
def test_nearly_the_same_in_half_precision(checkpoints, name, method):
    checkpoint = checkpoints(name)
    requests = requests_of(checkpoint)
    how = {"limit_mm_per_prompt": limits(checkpoint), **half(checkpoint)}
    with engine(checkpoint.folder, method, checkpoint.kind, **how) as llm:
        got = written(llm, requests)
        del llm
    near, far = (
        [each.behind(other, answer) for each, answer in zip(requests, got, strict=True)]
        for other in (method, sc.FPS(keep=7))
    )
    # Rounding; another method's tokens are further away.
    assert max(near) < 0.1
    assert max(far) > 0.2


@pytest.mark.parametrize("name", [*FAMILIES, *HYBRID])
def test_keeping_all_is_stock_vllm(checkpoints, name):
    checkpoint = checkpoints(name)
    requests = [*requests_of(checkpoint), Request(checkpoint, SIZES[1:], seed=11)]
    found = []
    for method in (None, sc.DivPrune(keep=10_000), sc.DivPrune(keep=1.0)):
        how = {"limit_mm_per_prompt": limits(checkpoint), **half(checkpoint)}
        with engine(checkpoint.folder, method, checkpoint.kind, **how) as llm:
            found.append(written(llm, requests))
            del llm
    assert found[0] == found[1] == found[2]


SHARED = [(name, sc.EVS(keep=0.3)) for name in ("llava_onevision", *QWEN, *GLM)]
SHARED += [(name, sc.VidCom2(keep=0.3, exact=True)) for name in ("qwen3_vl", "glm4v")]


@pytest.mark.parametrize(("name", "method"), SHARED, ids=lambda x: getattr(x, "name", x))
def test_a_budget_over_a_whole_video(checkpoints, name, method):
    checkpoint = checkpoints(name)
    # What the frames show decides how many each keeps; their sum is known.
    request = Request(checkpoint, videos=1)
    with engine(
        checkpoint.folder, method, checkpoint.kind, limit_mm_per_prompt=limits(checkpoint)
    ) as llm:
        got = written(llm, [request])
        del llm
    assert got == [request.expected(method)]


def test_frames_that_are_images_share_no_budget(checkpoints):
    checkpoint = checkpoints("internvl")
    request, image = Request(checkpoint, videos=1), Request(checkpoint, SIZES[:1])
    with engine(checkpoint.folder, sc.EVS(keep=0.3), checkpoint.kind) as llm:
        with pytest.raises(
            ValueError, match="secateur: EVS shares a budget over the frames of a v"
        ):
            written(llm, [request])
        got = written(llm, [image])
        del llm
    assert got == [image.expected(sc.EVS(keep=0.3))]


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v"])
def test_text_between_frames_comes_in_chunks(checkpoints, name):
    checkpoint = checkpoints(name)
    method = sc.EVS(keep=0.6)
    words = ("what is in the picture ?", "how many red dog ?", "what is in the picture ?")
    requests = [Request(checkpoint, videos=1, words=each) for each in words]
    requests.append(Request(checkpoint, SIZES[:1], videos=1, seed=3))
    chunks = {"enable_chunked_prefill": True, "max_num_batched_tokens": 40, "max_num_seqs": 4}
    limit = limits(checkpoint)
    with engine(
        checkpoint.folder, method, checkpoint.kind, limit_mm_per_prompt=limit, **chunks
    ) as llm:
        together = written(llm, requests)
        one_by_one = [written(llm, [each])[0] for each in requests]
        del llm
    assert together == one_by_one == [each.expected(method) for each in requests]


ROWS = [pytest.param(name, marks=pytest.mark.families) for name in ("mistral3", "pixtral")]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", *ROWS])
@pytest.mark.parametrize(
    ("method", "newlines"),
    [(sc.UniformGrid(keep=7), None), (sc.DivPrune(keep=7), "all")],
    ids=["rows", "all"],
)
def test_newlines_as_in_transformers(checkpoints, name, method, newlines):
    checkpoint = checkpoints(name)
    requests = [Request(checkpoint, [size], seed=n) for n, size in enumerate(SIZES)]
    asked = overrides(method, checkpoint.kind, newlines=newlines)
    with engine(checkpoint.folder, hf_overrides=asked) as llm:
        got = written(llm, requests)
        del llm
    assert got == [each.expected(method, newlines=newlines) for each in requests]
    without = [each.expected(method, newlines="none") for each in requests]
    assert all(one != other for one, other in zip(got, without, strict=True))


def test_text_after_a_long_video_is_numbered_as_vllm_does(checkpoints):
    checkpoint = checkpoints("qwen2_5_vl")
    request = Request(checkpoint, videos=1)
    found = []
    for method in (None, sc.DivPrune(keep=1.0), None):
        asked = {} if method is None else overrides(method, checkpoint.kind)
        # Two steps of time, the second at 4: further than three rows and columns reach.
        asked["vision_config"] = {"tokens_per_second": 4 if len(found) < 2 else 1}
        limit = limits(checkpoint)
        with engine(checkpoint.folder, limit_mm_per_prompt=limit, hf_overrides=asked) as llm:
            found.append(written(llm, [request]))
            del llm
    assert found[0] == found[1]
    assert found[0] != found[2]


CACHES = {
    "usual": {},
    "no prefix cache": {"enable_prefix_caching": False},
    "in chunks": {"enable_chunked_prefill": True, "max_num_batched_tokens": 16},
    "no processor cache": {"mm_processor_cache_gb": 0},
    "not measured": {"skip_mm_profiling": True},
}


MORE = [
    pytest.param(name, marks=pytest.mark.families) for name in ("smolvlm", "mistral3", "pixtral")
]


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl", *MORE]
)
def test_caches_and_chunks_change_nothing(checkpoints, name):
    checkpoint = checkpoints(name)
    method = sc.TopK(keep=12)
    # The same picture under other words, and once more: its prefix and its encoding are cached.
    requests = [
        Request(checkpoint, [SIZES[0]], words=words)
        for words in ("what is in the picture ?", "how many red dog ?", "what is in the picture ?")
    ]
    requests.append(Request(checkpoint, SIZES[:2], seed=3))
    want = [each.expected(method) for each in requests]
    for what, how in CACHES.items():
        if "max_num_batched_tokens" in how:
            # No less than one item, which vLLM encodes whole.
            least = {"llava_next": 64, "internvl": 64, "smolvlm": 80}.get(name, 24)
            how = {**how, "max_num_batched_tokens": least}
        with engine(checkpoint.folder, method, checkpoint.kind, **how) as llm:
            assert written(llm, requests) == want, what
            one_by_one = [written(llm, [each])[0] for each in requests]
            assert one_by_one == want, what
            del llm


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_image_under_two_instructions(checkpoints, name):
    checkpoint = checkpoints(name)
    request = Request(checkpoint, [SIZES[0]])
    asked = ["red dog", "how many tree", "red dog"]
    with engine(checkpoint.folder, EADP, checkpoint.kind) as llm:
        got = [written(llm, [request], instruction)[0] for instruction in asked]
        with pytest.raises(ValueError, match="EADP chooses by the instruction; send it"):
            written(llm, [request])
        with pytest.raises(ValueError, match="no words in the instruction"):
            written(llm, [request], "</s>")
        del llm
    assert got == [request.expected(EADP, instruction) for instruction in asked]
    assert got[0] != got[1]


def test_nothing_happens_unless_asked_for(checkpoints):
    checkpoint = checkpoints("llava")
    request = Request(checkpoint, [SIZES[0]])
    with engine(checkpoint.folder) as llm:
        out = llm.generate([request.served()], GREEDY, use_tqdm=False)[0]
        del llm
    assert len(out.prompt_token_ids) == 46
    assert sum(token == 4 for token in out.prompt_token_ids) == TOKENS


def test_a_prompt_is_shorter_by_what_was_dropped(checkpoints):
    checkpoint = checkpoints("llava")
    with engine(checkpoint.folder, sc.FPS(keep=5)) as llm:
        out = llm.generate(
            [Request(checkpoint, SIZES).served()], SamplingParams(max_tokens=1), use_tqdm=False
        )[0]
        del llm
    assert sum(token == 4 for token in out.prompt_token_ids) == 3 * 5
