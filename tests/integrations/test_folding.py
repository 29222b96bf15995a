"""Tokens that fold inside the encoder, against towers written out token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cosine_similarity

import secateur as sc
from secateur.core.inputs import REQUESTS
from secateur.core.methods.mustdrop import MustDrop
from secateur.core.methods.tome import ToMe
from secateur.integrations.attach import attach, choose_each, encode, shorten
from secateur.integrations.choosing import wanted
from secateur.integrations.families.llava import LLAVA
from secateur.integrations.families.llava_next import LLAVA_NEXT
from secateur.integrations.families.llava_onevision import LLAVA_ONEVISION
from secateur.integrations.families.qwen import QWEN2_5_VL
from secateur.integrations.transformers.models import FAMILIES, adapter_of

TWO = {"words": ("what is in this picture ?", "how many red dog ?"), "images": (1, 1)}
SIZE = 16
LIKENESS = 0.3
"""Of the windows of the picture, some are more alike and some less."""


@pytest.fixture(scope="module")
def llava(cases):
    return cases["llava"]()


@pytest.fixture(scope="module")
def clip(llava):
    return llava.model()


@pytest.fixture(scope="module")
def siglip(llava, clip):
    """The same with a SigLIP tower, which has no class token."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=clip.config.text_config,
        image_token_id=4,
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.fixture(params=["clip", "siglip"])
def model(request):
    return request.getfixturevalue(request.param)


class Slow:
    """A tower's layers by hand on one picture; tokens are lists of the patches they stand for."""

    def __init__(self, model, pixels, proportional):
        self.model, self.proportional = model, proportional
        self.tower = model.model.vision_tower
        self.class_token = hasattr(self.tower, "pre_layrnorm")
        states = self.tower.embeddings(pixels[None])
        if self.class_token:
            states = self.tower.pre_layrnorm(states)
        self.states = states[0]
        first = int(self.class_token)
        self.members = [["class"]] * first + [[n] for n in range(len(self.states) - first)]

    def sizes(self):
        return torch.tensor([float(len(own)) for own in self.members])

    def attend(self, layer):
        """Adds attention; returns its mean keys, and what it pays."""
        attention, x = layer.self_attn, layer.layer_norm1(self.states)
        split = [
            projection(x).reshape(len(x), 4, 8).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        logits = split[0] @ split[1].mT / 8**0.5
        if self.proportional:
            logits = logits + self.sizes().log()
        paid = logits.softmax(-1)
        mixed = (paid @ split[2]).transpose(0, 1).reshape(len(x), -1)
        self.states = self.states + attention.out_proj(mixed)
        return split[1].mean(0), paid

    def feed(self, layer):
        self.states = self.states + layer.mlp(layer.layer_norm2(self.states))

    def become(self, groups):
        """One token of each group of tokens, by size."""
        sizes = self.sizes()
        self.states = torch.stack(
            [(sizes[own, None] * self.states[own]).sum(0) / sizes[own].sum() for own in groups]
        )
        self.members = [[n for token in own for n in self.members[token]] for own in groups]

    def merge(self, keys, gone):
        """ToMe's matching, token by token."""
        count = len(keys)
        targets = list(range(1, count, 2))
        best = {}
        for token in range(int(self.class_token) * 2, count, 2):
            likeness = [float(cosine_similarity(keys[token], keys[b], dim=0)) for b in targets]
            best[token] = (max(likeness), targets[int(np.argmax(likeness))])
        order = sorted(best, key=lambda token: -best[token][0])
        stay = order[gone:]
        stay = [0, *sorted(stay)] if self.class_token else stay
        joined = {b: [b] for b in targets}
        for token in order[:gone]:
            joined[best[token][1]].append(token)
        self.become([[token] for token in stay] + list(joined.values()))

    def merge_every(self, keys, every):
        first = int(self.class_token)
        targets = list(range(first + every - 1, len(keys), every))
        joined = {b: [b] for b in targets}
        for token in set(range(first, len(keys))) - set(targets):
            likeness = [float(cosine_similarity(keys[token], keys[b], dim=0)) for b in targets]
            joined[targets[int(np.argmax(likeness))]].append(token)
        self.become([[token] for token in range(first)] + list(joined.values()))

    def merge_windows(self, likeness):
        first, alike = int(self.class_token), {}
        for row in (0, 2):
            for column in (0, 2):
                own = [first + 4 * (row + y) + column + x for y in (0, 1) for x in (0, 1)]
                pairs = [(i, j) for i in own for j in own if i != j]
                total = sum(
                    float(cosine_similarity(self.states[i], self.states[j], dim=0))
                    for i, j in pairs
                )
                alike[tuple(own)] = total / len(pairs)
        merged = sorted((own for own in alike if alike[own] >= likeness), key=lambda x: -alike[x])
        inside = {token for own in merged for token in own}
        rest = [[token] for token in range(first, len(self.states)) if token not in inside]
        self.become([[token] for token in range(first)] + [list(own) for own in merged] + rest)
        return len(merged)

    def features(self):
        first = int(self.class_token)
        return self.model.model.multi_modal_projector(self.states[first:])

    def first_places(self):
        return [min(own) for own in self.members[int(self.class_token) :]]


def layers_of(model):
    """The layers up to the one whose states become features."""
    layers = model.model.vision_tower.encoder.layers
    return layers[:3] if hasattr(model.model.vision_tower, "pre_layrnorm") else layers


TOME = {
    "spread": ToMe(keep=6),
    "early": ToMe(keep=5, inflect=-1.0),
    "r": ToMe(keep=3, r=2),
    "plain": ToMe(keep=6, proportional=False),
    "every": ToMe(keep=3, every=5),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", TOME.values(), ids=TOME)
@torch.no_grad()
def test_tome_is_the_tower_written_out(llava, model, method, attention):
    model.set_attn_implementation(attention)
    inputs = llava.inputs(**TWO)
    encoded = encode(model, inputs, method=method)
    chosen = choose_each(method, encoded)
    planned = method.removed(len(layers_of(model)), SIZE)
    assert sum(planned) > 0
    for pixels, visual, kept in zip(inputs["pixel_values"], encoded.visuals, chosen, strict=True):
        slow = Slow(model, pixels, method.proportional)
        for number, layer in enumerate(layers_of(model)):
            keys, _ = slow.attend(layer)
            if method.every is not None and planned[number]:
                slow.merge_every(keys, method.every)
            elif planned[number]:
                slow.merge(keys, planned[number])
            slow.feed(layer)
        places = slow.first_places()
        assert visual.chosen[0].indices.tolist() == places
        assert kept.kept.tolist() == sorted(places)
        assert len(places) == SIZE - sum(planned)
        torch.testing.assert_close(visual.features[places], slow.features(), rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_nothing_to_fold_is_the_stock_model(llava, model):
    inputs = llava.inputs(**TWO)
    logits = model(**inputs).logits
    with attach(model, ToMe(keep=SIZE)):
        assert torch.equal(model(**inputs).logits, logits)
    alone = llava.inputs()  # MustDrop takes picture by picture.
    stock = model(**alone).logits
    with attach(model, MustDrop(keep=SIZE, window=2, likeness=0.0)):
        assert torch.equal(model(**alone).logits, stock)
    assert torch.equal(model(**inputs).logits, logits)


@torch.no_grad()
def test_the_language_model_reads_what_is_left(llava, model, calls):
    inputs, method = llava.inputs(**TWO), ToMe(keep=6)
    encoded = encode(model, inputs, method=method)
    prompt = shorten(model, inputs, encoded, choose_each(method, encoded))
    with attach(model, method) as att, calls(model) as seen:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(seen[0]["inputs_embeds"], prompt.embeds)
    assert [len(kept) for kept in att.last.kept] == [6, 6]
    assert att.last.prompt_length[1] == att.last.prompt_length[0] - SIZE + 6
    assert [int(picture[0].kept.sum()) for picture in att.last.pictures] == [6, 6]
    assert torch.equal(out[:, :-3], inputs["input_ids"])
    with torch.no_grad():
        alone = llava.inputs(words=TWO["words"][1:], seed=1)
        with attach(model, method):
            model(**alone)
            one = model.generate(**alone, max_new_tokens=3, do_sample=False)
    assert torch.equal(one[0, -3:], out[1, -3:])


@pytest.mark.parametrize("published", [False, True])
@torch.no_grad()
def test_mustdrop_merges_windows_then_marks_keys(llava, clip, published):
    inputs = llava.inputs()
    layers = clip.model.vision_tower.encoder.layers
    method = MustDrop(keep=4, window=2, likeness=LIKENESS, key=0.2, published=published)
    encoded = encode(clip, inputs, wants={"attention"}, requests=method.requests, method=method)
    chosen = choose_each(method, encoded)[0]
    slow = Slow(clip, inputs["pixel_values"][0], proportional=False)
    for number, layer in enumerate(layers):
        _, paid = slow.attend(layer)
        slow.feed(layer)
        if number == 0:
            assert 0 < slow.merge_windows(LIKENESS) < 4
        if number == 2:
            features = slow.features()
    left = len(slow.members) - 1
    places = list(range(left)) if published else slow.first_places()
    torch.testing.assert_close(encoded.visuals[0].features[places], features, rtol=1e-4, atol=1e-5)
    asked = paid.mean(0)[0, 1:]
    key = asked.argsort(descending=True)[: int(np.ceil(0.2 * left))]
    told = chosen.selections[0].info["key"]
    assert sorted(np.flatnonzero(told).tolist()) == sorted(places[n] for n in key)
    assert chosen.kept.tolist() == sorted(places)


@torch.no_grad()
def test_mustdrop_cuts_what_the_encoder_left(llava, clip):
    inputs = llava.inputs(**TWO)
    whole = MustDrop(keep=4, overall=0.0, single=0.0)
    merged = MustDrop(keep=4, overall=0.0, single=0.0, window=2, likeness=LIKENESS)
    lengths = []
    for method in (whole, merged):
        with attach(clip, method) as att:
            clip(**inputs)
            clip.generate(**inputs, max_new_tokens=3, do_sample=False)
        lengths.append([len(kept) for kept in att.last.kept])
        assert [len(cuts[-1][1]) for cuts in att.last.inside] == [4, 4]
    assert lengths[0] == [SIZE, SIZE]
    assert all(4 < own < SIZE for own in lengths[1])


@pytest.fixture(params=["llava_next", "llava_onevision"], scope="module")
def tiled(request, cases):
    case = cases[request.param]()
    return case, case.model()


def tiles_of(case, model, inputs):
    """The pictures of each image, the overview first, and how the model packs what is of them."""
    found = []
    strategy = {"vision_feature_select_strategy": "full"} if case.name == "llava_next" else {}
    ratio = {} if strategy else {"vision_aspect_ratio": model.config.vision_aspect_ratio}
    counts = inputs.get("batch_num_images")
    alone = [True] * len(inputs["image_sizes"])
    if counts is not None:
        alone = [int(n) == 1 for n in counts for _ in range(int(n))]
    for own, size, cut in zip(inputs["pixel_values"], inputs["image_sizes"], alone, strict=True):
        crops = own[: len(own) if cut else 1]
        crops = crops[[bool(crop.any()) for crop in crops]]

        def pack(x, size=size):
            return model.model.pack_image_features([x], size[None], **strategy, **ratio)[0][0]

        found.append((crops, pack))
    return found


def shown_in(pack, pictures):
    """True (P, N) at tokens that packing does not cut off as padding."""
    numbers = torch.arange(1.0, pictures * SIZE + 1).reshape(pictures, SIZE, 1)
    shown = torch.zeros(pictures * SIZE, dtype=torch.bool)
    shown[pack(numbers)[:, 0].long() - 1] = True
    return shown.reshape(pictures, SIZE)


def slow_tile(model, pixels, method):
    slow = Slow(model, pixels, getattr(method, "proportional", False))
    planned = method.removed(len(layers_of(model)), SIZE) if isinstance(method, ToMe) else None
    for number, layer in enumerate(layers_of(model)):
        keys, _ = slow.attend(layer)
        if planned and planned[number]:
            slow.merge(keys, planned[number])
        slow.feed(layer)
        if planned is None and number == 0:
            slow.merge_windows(method.likeness)
    return slow


def drawn(case, monkeypatch, sizes=((40, 60), (64, 30), (30, 30))):
    """Two prompts of pictures of such sizes, some of whose crops are padded."""
    monkeypatch.setattr(type(case), "sizes", sizes)
    several = case.name == "llava_next"  # OneVision does not cut several images of a prompt.
    return case.inputs(words=TWO["words"], images=(2, 1) if several else (1, 1))


@pytest.mark.parametrize(
    "method",
    [ToMe(keep=6), MustDrop(keep=4, overall=0.0, single=0.0, window=2, likeness=LIKENESS)],
    ids=["tome", "mustdrop"],
)
@torch.no_grad()
def test_tiles_fold_each_by_itself_and_stand_in_their_grid(tiled, monkeypatch, method):
    case, model = tiled
    inputs = drawn(case, monkeypatch)
    encoded = encode(
        model, inputs, wants=method.needs - {"features"}, requests=REQUESTS, method=method
    )
    chosen = choose_each(method, encoded)
    padded = 0
    for (crops, pack), visual, kept in zip(
        tiles_of(case, model, inputs), encoded.visuals, chosen, strict=True
    ):
        shown = shown_in(pack, len(crops))
        features = torch.zeros(len(crops), SIZE, visual.features.shape[1])
        left = torch.zeros(len(crops), SIZE)
        for number, pixels in enumerate(crops):
            slow = slow_tile(model, pixels, method)
            here = set(shown[number].nonzero()[:, 0].tolist())
            places = [
                min(here.intersection(own) or own) for own in slow.members[int(slow.class_token) :]
            ]
            features[number, places], left[number, places] = slow.features(), 1.0
        padded += int((~shown).sum())
        packed, flags = pack(features), pack(left[..., None])[:, 0].bool()
        index = np.concatenate([part.index for part in visual.parts])
        order = np.argsort(index)
        index = index[order]
        ours = torch.cat([own.mask() for own in visual.chosen])[order]
        assert torch.equal(ours, flags)
        assert 0 < int(ours.sum()) < len(ours)
        torch.testing.assert_close(visual.features[index], packed, rtol=1e-4, atol=1e-5)
        # A newline stays as long as its row keeps a token.
        rows = [place for place, row in visual.separators if ours[np.isin(index, row)].any()]
        assert kept.kept.tolist() == sorted([*index[ours.numpy()], *rows])
    assert padded > 0


@torch.no_grad()
def test_tiles_without_anything_to_fold_are_the_stock_model(tiled, monkeypatch):
    case, model = tiled
    inputs = drawn(case, monkeypatch)
    logits = model(**inputs).logits
    with attach(model, ToMe(keep=SIZE)):
        assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model(**inputs).logits, logits)


@torch.no_grad()
def test_what_is_left_of_tiles_is_what_is_read(tiled, monkeypatch, calls):
    case, model = tiled
    inputs = drawn(case, monkeypatch)
    method = ToMe(keep=6)
    encoded = encode(model, inputs, method=method)
    prompt = shorten(model, inputs, encoded, choose_each(method, encoded))
    with attach(model, method) as att, calls(model) as seen:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(seen[0]["inputs_embeds"], prompt.embeds)
    assert att.last.prompt_length[1] < att.last.prompt_length[0]
    assert torch.equal(out[:, :-3], inputs["input_ids"])


def test_images_of_one_prompt_fold_uncut(cases, monkeypatch):
    case = cases["llava_onevision"]()
    model = case.model()
    inputs = case.inputs(words=TWO["words"][:1], images=(2,))
    with torch.no_grad():
        encoded = encode(model, inputs, method=ToMe(keep=6))
    assert [len(visual.parts) for visual in encoded.visuals] == [1, 1]
    assert [len(visual.chosen[0].indices) for visual in encoded.visuals] == [6, 6]


@torch.no_grad()
def test_what_is_shrunk_or_pooled_behind_the_encoder_does_not_fold(cases, monkeypatch):
    case = cases["llava_onevision"]()
    model, method = case.model(), ToMe(keep=4)
    with pytest.raises(ValueError, match=r"pixel_values_videos: ToMe folds .* frames are pooled"):
        encode(model, case.video(), method=method)
    inputs = drawn(case, monkeypatch, sizes=((64, 64), (30, 30)))
    with pytest.raises(ValueError, match="more than 3 crops' worth of tokens is shrunk behind it"):
        encode(model, inputs, method=method)


FAMILIES_OF_MODELS = {adapter_of(name).family.name: adapter_of(name).family for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES_OF_MODELS.values(), ids=FAMILIES_OF_MODELS)
def test_every_family_folds_or_says_why_not(family):
    methods = (ToMe(keep=4), MustDrop(keep=4, window=3))
    if family.folds:
        assert not family.joins
        for method in methods:
            assert wanted(method, family, None) <= {"features", "attention"}
    else:
        message = rf"folds tokens inside the encoder; behind that of {family.name} {family.joins}"
        cuts = (*methods[1:], sc.published("mustdrop"))
        for method in (methods[0], *cuts):
            with pytest.raises(ValueError, match=message):
                wanted(method, family, None)


def test_what_cannot_fold_is_refused(llava, clip):
    hosted = replace(LLAVA, folds=False)
    with pytest.raises(ValueError, match=r"what follows that of LLaVA-1\.5 does not do without"):
        wanted(ToMe(keep=4), hosted, None)
    for family in (LLAVA_NEXT, LLAVA_ONEVISION):
        message = f"one after the other, and {family.name} lays them out in a grid"
        with pytest.raises(ValueError, match=message):
            wanted(sc.published("mustdrop"), family, None)
    assert wanted(MustDrop(keep=4), QWEN2_5_VL, None) == {"features", "attention"}
    inputs = {**llava.inputs(), "vision_feature_layer": [-2, -1]}
    with pytest.raises(ValueError, match="features of several layers then differ in length"):
        encode(clip, inputs, method=ToMe(keep=4))
    with pytest.raises(ValueError, match="one in 8 of 16 tokens is fewer than keep=4"):
        encode(clip, llava.inputs(), method=ToMe(keep=4, every=8))
    with pytest.raises(ValueError, match="every: merges all at once"):
        ToMe(every=4, r=8)
