"""Compiling a model after attaching changes nothing; what cannot work is refused in words."""

import pytest
import torch

import secateur as sc
from secateur.integrations.attach import UnsupportedModelError, attach, encode
from secateur.integrations.transformers.internals import cache_in, cache_name

GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def method_for(case, by_norm, kind):
    """A method before or between the layers; linear ones cannot forget, so that it asks later."""
    if kind == "before":
        return by_norm(keep=4)
    if case.cuttable:
        return sc.FastV(keep=0.5)
    case.layers = 8  # of which 3 and 7 attend, the others are linear
    return sc.FastV(keep=0.5, after=4, published=True)


def answers(called, model, inputs):
    """Logits of the prompt and of a step after it, and what `generate` goes on with."""
    with torch.no_grad():
        first = called(**inputs, use_cache=True)
        chosen = first.logits[:, -1:].argmax(-1)
        second = called(input_ids=chosen, **{cache_name(): cache_in(first)})
        return first.logits, second.logits, model.generate(**inputs, **GREEDY)


def compiled(model, form):
    """What to call, after compiling in one of the ways there are."""
    if form == "model.compile()":
        model.compile(backend="eager")
        return model
    if form == "torch.compile(model)":
        return torch.compile(model, backend="eager")
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("model.compile()", "before"),
        ("model.compile()", "inside"),
        ("torch.compile(model)", "inside"),
        ("model.forward = torch.compile(...)", "before"),
        # Seconds each; each form and each kind are above.
        pytest.param("torch.compile(model)", "before", marks=pytest.mark.slow),
        pytest.param("model.forward = torch.compile(...)", "inside", marks=pytest.mark.slow),
    ],
)
def test_compiled_after_attaching_equals_uncompiled(case, by_norm, kind, form):
    method = method_for(case, by_norm, kind)
    model, inputs = case.model(), case.inputs()
    att = attach(model, method, case.processor())
    expected = answers(model, model, inputs)
    before, after = att.last.prompt_length[0], att.last.final_length
    assert after < before
    att.last = None
    found = answers(compiled(model, form), model, inputs)
    assert att.last.final_length == after
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_part_that_was_compiled_is_refused_at_the_first_call(cases, by_norm):
    case = cases["llava"]()
    model = case.model()
    attach(model, by_norm(keep=4))
    model.model.language_model.layers[1].compile(backend="eager")
    refused = pytest.raises(UnsupportedModelError, match=r"layers\.1 in it was compiled, where")
    with refused:
        model(**case.inputs())
    with refused:
        model.generate(**case.inputs(), **GREEDY)
    with refused:
        encode(model, case.inputs())


@pytest.mark.parametrize("what", ["part", "forward"])
def test_compiled_before_attaching_is_refused(cases, by_norm, what):
    model = cases["llava"]().model()
    if what == "part":
        model.model.vision_tower.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(UnsupportedModelError, match="was compiled; attach first, then compile"):
        attach(model, by_norm(keep=4))
