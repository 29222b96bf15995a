"""`encode`, `choose_each` and `shorten`: what an attachment consists of."""

import numpy as np
import pytest
import torch

import secateur as sc
from secateur.core.acts import ChoosesParts
from secateur.core.selection import folding
from secateur.integrations.attach import attach, choose_each, encode, shorten
from secateur.integrations.choosing import choose, tokens_of
from secateur.integrations.encoded import Part, Visual

MANY = {"words": ("compare both", "how many red dog and cat does this show ?"), "images": (2, 1)}


def test_the_stages_make_what_an_attachment_makes(case, model, by_norm, calls):
    inputs = case.inputs(**MANY)
    encoded = encode(model, inputs)
    assert [row for row, _ in encoded.places] == [0, 0, 1]
    for visual, (row, columns) in zip(encoded.visuals, encoded.places, strict=True):
        assert visual.size == len(columns)
        assert case.standing(model, inputs["input_ids"])[row, torch.from_numpy(columns)].all()
    chosen = choose_each(by_norm(keep=0.4), encoded)
    prompt = shorten(model, inputs, encoded, chosen, generating=False)
    with attach(model, by_norm(keep=0.4)) as att, calls(model) as seen:
        model(**inputs)
    assert torch.equal(prompt.embeds, seen[0]["inputs_embeds"])
    assert torch.equal(prompt.positions, seen[0]["position_ids"])
    for ours, theirs in zip(prompt.report.kept, att.last.kept, strict=True):
        assert np.array_equal(ours, theirs)


def test_encoding_gathers_what_is_wanted(case, model):
    inputs, processor = case.inputs(**MANY), case.processor()
    method = sc.TopK(keep=3)
    with attach(model, method) as att:
        model(**inputs)
    encoded = encode(model, inputs, processor, wants=method.needs | {"text"})
    assert len(encoded.texts) == 2
    scores = [part.scores for pictures in att.last.pictures for part in pictures]
    for tokens, own in zip(tokens_of(encoded), scores, strict=True):
        assert tokens.keys is None
        assert tokens.text is not None
        np.testing.assert_allclose(method.select(tokens).scores.numpy(), own, rtol=1e-5)


def test_what_a_family_does_not_have_is_refused(model, case):
    with pytest.raises(ValueError, match=r"wants: .* does not have embeds \(it offers"):
        encode(model, case.inputs(), wants={"embeds"})
    with pytest.raises(ValueError, match="inputs: expected pixel_values or pixel_values_videos"):
        encode(model, case.inputs(images=(0,)))


def test_shortening_writes_nothing_into_the_model(case, by_norm):
    """Beyond what transformers writes at a model's first call."""
    model, inputs = case.model(), case.inputs()
    model(**inputs)
    modules = {name: dict(vars(module)) for name, module in model.named_modules()}
    with attach(model, by_norm(keep=3)):
        own = dict(vars(model))
        model(**inputs)
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        for name, module in model.named_modules():
            before = modules[name] if name else own
            assert vars(module).keys() == before.keys()
            assert all(value is before[key] for key, value in vars(module).items())


class Padded(sc.TopK, ChoosesParts):
    """Keeps two tokens of each part, and folds the others into the first of them."""

    sees_padding = True

    def select_parts(self, parts, pictures):
        chosen = []
        for part in parts:
            kept = sc.Selection.of(part.attention.argsort(descending=True)[:2], part.size)
            into = torch.full((part.size,), int(kept.indices[0]))
            chosen.append(folding(kept, into, torch.ones(part.size)))
        return chosen


def test_padding_is_chosen_from_and_does_not_go_on():
    """Of a crop of 2 x 2 whose last row is cut off; it counts, and folds, and is not there."""
    shown = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    cut_off = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    seen = {"attention": torch.tensor([0.4, 0.1, 0.3, 0.2])}
    padded = Part(
        index=np.array([0, 1, -1, -1]), grid=(2, 2), features=torch.cat([shown, cut_off]), **seen
    )
    part = Part(index=np.arange(2), grid=(1, 2), attention=seen["attention"][:2])
    visual = Visual(modality="image", features=shown, parts=[part], padded=[padded], crops=1)
    chosen = choose(Padded(keep=2), visual, frozenset({"attention"}), None)
    assert chosen.kept.tolist() == chosen.places.tolist() == [0]
    assert chosen.features.tolist() == [[1.0, 11.0], [0.0, 1.0]]
    (picture,) = chosen.pictures
    assert picture.kept.tolist() == [True, False, True, False]
    assert picture.budget == 2
