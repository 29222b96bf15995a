"""Copies and pickles of an attached model are detached; the model itself stays attached."""

import copy
import io
import pickle

import pytest
import torch

from secateur.integrations.attach import attach

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def saved(model):
    """Through `torch.save`, whole."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model)), saved],
    ids=["deepcopy", "copy", "pickle", "save"],
)
def test_a_copy_is_detached(case, by_norm, copied):
    """Of a model that has yet to run: after its first call transformers' own hooks in it cannot be
    pickled, attached or not."""
    model, inputs = case.model(), case.inputs()
    attributes = set(vars(model))
    with attach(model, by_norm(keep=3), case.processor()) as att:
        made = copied(model)
        assert set(vars(made)) == attributes
        assert made.forward.__self__ is made
        pruned = model(**inputs).logits
        stock = made(**inputs).logits
        assert stock.shape[1] > pruned.shape[1]
        assert att.attached
        with attach(made, by_norm(keep=3)):
            assert torch.equal(made(**inputs).logits, pruned)
    assert torch.equal(model(**inputs).logits, stock)
    assert torch.equal(made.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def test_an_attachment_is_no_thing_to_copy(case, model, by_norm):
    with attach(model, by_norm(keep=3)) as att:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copy the model, whose copy is detached"):
                copied(att)


def test_the_copy_of_a_pruned_cache_goes_on_as_the_cache_does(case, model, by_norm):
    from secateur.integrations.transformers.internals import cache_in, cache_name

    with attach(model, by_norm(keep=3)), torch.no_grad():
        held = cache_in(model(**case.inputs(), use_cache=True))
        other = copy.deepcopy(held)
        step = torch.tensor([[13]])
        logits = [model(input_ids=step, **{cache_name(): x}).logits for x in (held, other)]
    assert torch.equal(*logits)
