"""From a picture and a question to an answer, on the model that comes with the package."""

import pytest

pytest.importorskip("torch", reason="the lab's model needs PyTorch")
pytest.importorskip("transformers", reason="the lab's model needs transformers")

import secateur as sc
from secateur import lab

TOKENS = 144


@pytest.fixture(scope="module")
def loaded():
    return *lab.load(), lab.text_encoder()


def colours(loaded, method):
    """Share of right answers on the colours of ten held-out scenes."""
    model, processor, encoder = loaded
    with sc.attach(model, method, processor, encoder):
        return lab.evaluate(model, processor, 10, kind="colour")["colour"]


def test_with_all_tokens_every_answer_is_the_stock_model_s(loaded):
    model, processor, encoder = loaded
    drawn = list(lab.scenes(4, lab.HELD_OUT))
    stock = [told for _, _, told in lab.ask_all(model, processor, drawn)]
    with sc.attach(model, sc.EADP(keep=TOKENS), processor, encoder):
        assert [told for _, _, told in lab.ask_all(model, processor, drawn)] == stock


@pytest.mark.parametrize("name", ["eadp", "divprune", "fastv"])
def test_half_of_the_tokens_still_tell_colours(loaded, name):
    assert colours(loaded, sc.method(name, keep=TOKENS // 2)) >= 0.95


def test_a_few_tokens_at_random_do_not(loaded):
    assert colours(loaded, sc.Random(keep=8)) < 0.7 < 0.85 <= colours(loaded, sc.DivPrune(keep=16))


def test_the_report_counts_what_the_model_saw(loaded):
    model, processor, encoder = loaded
    scene = next(lab.scenes(1, lab.HELD_OUT))
    question = scene.questions[0].text
    with sc.attach(model, sc.EADP(keep=16), processor, encoder) as attachment:
        lab.answer(model, processor, scene.image, question)
        report = attachment.last
    assert len(report.kept[0]) == 16
    assert report.grids == [[(12, 12)]]
    before, after = report.prompt_length
    assert before - after == TOKENS - 16
    assert report.overlay(scene.image).size == (96, 96)
