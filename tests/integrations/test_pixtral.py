"""Rows of images and their marks, in Mistral 3 and in Pixtral 12B, which has LLaVA's class."""

import numpy as np
import pytest
import torch
import transformers

import secateur as sc
from secateur.integrations.attach import attach
from secateur.integrations.families.pixtral import check_rows, merged
from secateur.integrations.transformers.models import UnsupportedModelError, family_of

pytestmark = pytest.mark.families
WORDS = ("compare both", "how many red dog ?")


@pytest.fixture(scope="module")
def mistral(cases):
    case = cases["mistral3"]()
    return case, case.model()


@pytest.mark.parametrize("newlines", ["rows", "all", "none"])
def test_breaks_stay_as_the_setting_says_and_the_end_always(mistral, by_norm, by_hand, newlines):
    case, model = mistral
    inputs = case.inputs(words=WORDS, images=(2, 1))
    ids = inputs["input_ids"].numpy()
    width = {6: "break", 7: "end"}  # the tokens that the processor of the tests puts
    model.config.secateur_newlines = newlines
    try:
        with attach(model, by_norm(keep=2)) as att:
            logits = model(**inputs).logits
    finally:
        del model.config.secateur_newlines
    positions = att.last.positions
    real = torch.from_numpy(positions >= 0)
    own = by_hand(model, inputs, positions)
    torch.testing.assert_close(logits[real], own[real], rtol=2e-4, atol=2e-4)
    for row, columns in enumerate(positions):
        kept = set(columns.tolist())
        start = 0
        for column in np.flatnonzero(np.isin(ids[row], list(width))):
            tokens = [n for n in range(start, column) if ids[row, n] == 4]
            start = column + 1
            stays = {"rows": any(n in kept for n in tokens), "all": True, "none": False}[newlines]
            assert (column in kept) == (stays or width[int(ids[row, column])] == "end")


def test_rows_of_other_images_are_refused():
    rows = np.array([[0, 1, 1, 0, 1, 1, 0, 0]], dtype=bool)
    check_rows(rows, [(2, 2)])
    check_rows(rows, [(1, 2), (1, 2)])
    for grids in ([(1, 4)], [(2, 3)], [(3, 2)]):
        with pytest.raises(ValueError, match="placeholders and features disagree: the images"):
            check_rows(rows, grids)


def test_patches_that_fill_no_square_are_left_out():
    x = torch.arange(35.0)
    whole = torch.nn.functional.avg_pool2d(x.view(1, 1, 5, 7), 2).flatten()
    assert torch.equal(merged(x, (5, 7), 2), whole)


def test_pixtral_12b_is_mistral_3_without_merging(mistral, by_norm, by_hand):
    case, other = mistral
    config = transformers.LlavaConfig(
        vision_config=other.config.vision_config,
        text_config=other.config.text_config,
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    assert family_of(model).family.name == "Pixtral and Mistral 3"
    processor = case.processor()
    processor.image_processor.patch_size = {"height": 4, "width": 4}
    processor.patch = 4
    texts = [case.text(words, count) for words, count in zip(WORDS, (2, 1), strict=True)]
    inputs = processor(text=texts, images=case.images(3))
    logits = model(**inputs).logits
    with attach(model, by_norm(keep=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
    with attach(model, sc.TopK(keep=0.25)) as att:
        logits = model(**inputs).logits
    assert att.last.grids == [[(8, 12)], [(10, 8)], [(6, 16)]]
    real = torch.from_numpy(att.last.positions >= 0)
    own = by_hand(model, inputs, att.last.positions)
    torch.testing.assert_close(logits[real], own[real], rtol=2e-4, atol=2e-4)
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(UnsupportedModelError, match="the features must be all patches"):
        attach(model, by_norm(keep=3))
