"""Conversations that go on from the cache of a pruned prompt, against one long prompt."""

import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach
from secateur.integrations.transformers.internals import cache_in, cache_name
from secateur.integrations.transformers.models import family_of

FURTHER = ("gemma3", "gemma4", "glm4v", "mistral3", "qwen3_5", "qwen3_vl")
FAMILIES = ["llava", *(pytest.param(name, marks=pytest.mark.families) for name in FURTHER)]
KINDS = {"mm_token_type_ids", "token_type_ids"}
HOW = {
    "do_sample": False,
    "max_new_tokens": 4,
    "return_dict_in_generate": True,
    "output_logits": True,
}
FIRST = ("what is in this picture ?", "how many red dog ?")
NEXT = ("and what color is the dog ?", "and the cat ?", "does this show a tree or a car ?")


@pytest.fixture(scope="module", params=FAMILIES)
def talk(request, cases):
    """A model that answers in words."""
    case = cases[request.param]()
    if case.name == "qwen3_5":
        case.layers = 8  # of which 3 and 7 attend, the others are linear
    model = case.model()
    model.generation_config.suppress_tokens = sorted(family_of(model).structure_tokens(model))
    return case, model


def longer(before, out, after):
    """A conversation so far, what was answered and a new turn, with what goes beside the ids."""
    rows, answered = len(out.sequences), out.sequences.shape[1] - before["input_ids"].shape[1]
    ids = torch.cat([out.sequences, after["input_ids"]], dim=1)
    ones = torch.ones(rows, answered, dtype=torch.long)
    mask = torch.cat([before["attention_mask"], ones, after["attention_mask"]], dim=1)
    made = {"input_ids": ids, "attention_mask": mask}
    for name in KINDS & before.keys():
        made[name] = torch.cat([before[name], 0 * ones, after[name]], dim=1)
    return made


def pixels(inputs):
    return {name: inputs[name] for name in inputs.keys() - KINDS - {"input_ids", "attention_mask"}}


def both(*inputs):
    """Pixels of several turns of one conversation, padded to one size as processors do."""
    return {
        name: stacked([each[name] for each in inputs if name in each]) for name in pixels(inputs[0])
    }


def stacked(values):
    if values[0].ndim < 4:
        return torch.cat(values)
    height, width = (max(x.shape[side] for x in values) for side in (-2, -1))
    whole = [(0, width - x.shape[-1], 0, height - x.shape[-2]) for x in values]
    pad = torch.nn.functional.pad
    return torch.cat([pad(x, edge) for x, edge in zip(values, whole, strict=True)])


def spoken(model, logits):
    """The likeliest word."""
    logits = logits.clone()
    logits[model.generation_config.suppress_tokens] = -torch.inf
    return logits.argmax()


def agree(ours, theirs):
    assert torch.equal(ours.sequences, theirs.sequences)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_turns_of_text_and_of_a_new_image_equal_one_long_prompt(talk, by_norm, positions):
    """Text, an image, text again; the last with the pixels of all images, as processors do."""
    case, model = talk
    first = case.inputs(words=FIRST[:1], seed=1)
    turns = [
        case.inputs(words=NEXT[:1], images=(0,)),
        case.inputs(words=NEXT[1:2], seed=2),
        case.inputs(words=NEXT[2:], images=(0,)),
    ]
    with attach(model, by_norm(keep=3), positions=positions) as att:
        so_far, out, seen = first, model.generate(**first, **HOW), [first]
        for number, turn in enumerate(turns):
            talked = longer(so_far, out, turn)
            new = pixels(turn)
            seen += [turn] if new else []
            given = both(*seen) if number == 2 else new
            last = att.last
            ours = model.generate(**talked, **given, **HOW, **{cache_name(): cache_in(out)})
            assert (att.last is last) == (not new)
            with torch.no_grad():
                theirs = model.generate(**talked, **both(*seen), **HOW)
            agree(ours, theirs)
            so_far, out = talked, ours


def test_a_batch_with_padding_in_every_turn(talk, by_norm):
    case, model = talk
    first = case.inputs(words=FIRST, images=(1, 1))
    turns = [case.inputs(words=NEXT[:2], images=(0, 0)), case.inputs(words=NEXT[1:], images=(0, 0))]
    assert not all(bool(each["attention_mask"].all()) for each in turns)
    with attach(model, by_norm(keep=3)):
        so_far, out = first, model.generate(**first, **HOW)
        for turn in turns:
            talked = longer(so_far, out, turn)
            if case.name in ("qwen3_5", "gemma3", "gemma4"):
                with pytest.raises(ValueError, match="attention_mask: what goes on from linear"):
                    model.generate(**talked, **HOW, **{cache_name(): cache_in(out)})
                return
            ours = model.generate(**talked, **HOW, **{cache_name(): cache_in(out)})
            agree(ours, model.generate(**talked, **pixels(first), **HOW))
            so_far, out = talked, ours


@pytest.mark.parametrize("published", [False, True])
def test_after_cuts_a_turn_of_text_equals_forward_token_by_token(talk, published):
    """Either with caches of one length or, as published, of several."""
    case, model = talk
    inputs, turn = case.inputs(), case.inputs(words=NEXT[:1], images=(0,))
    method = sc.FastV(keep=4, after=4 if case.name == "qwen3_5" else 3, published=published)
    try:
        attach(model, method).detach()
    except ValueError as error:
        pytest.skip(str(error))
    with attach(model, method):
        out = model.generate(**inputs, **HOW)
        by_hand = model.generate(**inputs, **HOW)
        talked = longer(inputs, out, turn)
        ours = model.generate(**talked, **HOW, **{cache_name(): cache_in(out)})
        cache, found = cache_in(by_hand), []
        read = [*talked["input_ids"][0, out.sequences.shape[1] - 1 :]]
        with torch.no_grad():
            for step in range(len(read) + 3):
                token = read[step] if step < len(read) else spoken(model, found[-1])
                step_out = model(input_ids=token[None, None], **{cache_name(): cache})
                found.append(step_out.logits[0, -1])
        for a, b in zip(ours.logits, found[len(read) - 1 :], strict=True):
            torch.testing.assert_close(a[0], b, rtol=2e-4, atol=2e-4)
        again = longer(talked, ours, case.inputs(words=NEXT[1:2]))
        refused = pytest.raises(ValueError, match="a turn with images starts from an empty cache")
        with refused:
            model.generate(
                **again, **pixels(case.inputs(seed=2)), **HOW, **{cache_name(): cache_in(ours)}
            )


def test_what_does_not_go_on_is_refused(talk, by_norm):
    case, model = talk
    inputs, turn = case.inputs(), case.inputs(words=NEXT[1:2], seed=2)
    with attach(model, by_norm(keep=3)):
        out = model.generate(**inputs, **HOW)
        held = {cache_name(): cache_in(out)}
        talked = longer(inputs, out, turn)
        with pytest.raises(ValueError, match="input_ids: expected these and more, got shape"):
            model.generate(input_ids=inputs["input_ids"], **HOW, **held)
        with pytest.raises(ValueError, match="pixel_values: expected, since the new turn"):
            model.generate(**talked, **HOW, **held)
        with pytest.raises(ValueError, match=r"features disagree|both ways only at the start"):
            model.generate(**talked, **both(inputs, turn), **HOW, **held)
        with pytest.raises(ValueError, match=r"attention_mask: expected shape .*, got"):
            model.generate(**{**talked, "attention_mask": turn["attention_mask"]}, **HOW, **held)
        with pytest.raises(ValueError, match="position_ids: those of a pruned prompt are known"):
            model.generate(**talked, position_ids=talked["input_ids"], **HOW, **held)
