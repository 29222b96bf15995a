"""NaN and infinity inside a model end in a sentence that says where they came from."""

import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach


@pytest.fixture
def overflowing():
    """Hooks that let a module's output overflow in one place, gone afterwards."""
    handles = []

    def plant(module, bad):
        def hook(_module, _args, output):
            first = (output[0] if isinstance(output, tuple) else output).clone()
            first[..., -1, 0] = bad
            return (first, *output[1:]) if isinstance(output, tuple) else first

        handles.append(module.register_forward_hook(hook))

    yield plant
    for handle in handles:
        handle.remove()


def one(cases, name):
    case = cases[name]() if isinstance(cases[name], type) else cases[name]
    return case, case.model(), case.inputs(("how many red dog ?",))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [sc.TopK(keep=4), sc.DivPrune(keep=4)])
def test_features_that_overflowed_name_the_tower_and_projector(cases, overflowing, method, bad):
    _, model, inputs = one(cases, "llava")
    overflowing(model.model.multi_modal_projector, bad)
    with (
        attach(model, method),
        torch.no_grad(),
        pytest.raises(ValueError, match="features: the vision tower and projector gave NaN"),
    ):
        model(**inputs)


def test_a_layer_of_the_language_model_is_named(cases, overflowing):
    _, model, inputs = one(cases, "llava")
    overflowing(model.model.language_model.layers[1], float("inf"))
    with (
        attach(model, sc.FastV(keep=0.5, after=3)),
        torch.no_grad(),
        pytest.raises(ValueError, match=r"^what left layer 3 of the language model holds NaN"),
    ):
        model(**inputs)
