"""The model that watches: its start, its training, its answers."""

from dataclasses import replace

import pytest
import torch

from secateur.lab import clips, load, scenes
from secateur.lab.clips import FRAMES
from secateur.lab.training.filming import CHANGES, EVENTS, TAUGHT, film, stills
from secateur.lab.training.reading import read_visuals, score
from secateur.lab.training.watching import seen
from secateur.lab.watched import every_question
from secateur.lab.watcher import POOLED, build_reader, grown_from, inputs

RATE = {"what": 0.9, "where": 0.9, "when": 0.9, "count": 0.9, "reading": 0.9}


@pytest.fixture(scope="module")
def grown():
    return grown_from(load()[0]).eval()


@pytest.fixture(scope="module")
def reader():
    return build_reader()


def test_the_reader_gives_every_text_back_and_knows_scenes_as_before(reader):
    _, processor = load()
    texts = {
        text
        for clip in clips(60, seed=1)
        for question in every_question(clip.actors, 6)
        for text in (question.text, question.answer)
    }
    for text in texts:
        ids = reader(text).input_ids
        assert reader.unk_token_id not in ids
        assert reader.decode(ids, skip_special_tokens=True) == text
    told = next(scenes(1, seed=1)).caption
    assert reader(told).input_ids == processor.tokenizer(told).input_ids


def test_questions_packed_on_a_clip_read_as_if_each_were_alone(grown, reader):
    """Training's mask and positions give the logits of one ordinary prompt after another."""
    target = film(seed=7, step=0, size=1, room=60)
    with torch.no_grad():
        found = read_visuals(grown, seen(grown, target, thrifty=False), target)
    start = 0
    for turn in range(int(target.turns.max()) + 1):
        mine = target.turns[0] == turn
        said = reader.decode(target.tokens[0][mine])
        given = inputs(reader, [target.images[0].numpy()], [said])
        with torch.no_grad():
            alone = grown(**given).logits[0, -int(mine.sum()) :]
        asked = target.targets[0][mine] != -100
        count = int(asked.sum())
        torch.testing.assert_close(
            found.logits[start : start + count], alone[asked], rtol=1e-3, atol=1e-3
        )
        start += count
    assert start == len(found.logits)


def test_frames_that_show_the_same_may_be_encoded_once(grown):
    target = film(seed=7, step=1, size=1, room=60)
    first = target.same[0].tolist()
    assert all(target.images[0, t].ne(target.images[0, 0]).any() for t in range(1, FRAMES))
    still = replace(target, images=target.images[:, first])
    with torch.no_grad():
        torch.testing.assert_close(seen(grown, target, True), seen(grown, still, False))


def test_tokens_are_told_what_happens_to_them():
    target = film(seed=3, step=0, size=8, room=60)
    changes, events = (x.view(8, FRAMES, POOLED) for x in (target.changes, target.events))
    assert changes[:, 0].eq(0).all()
    assert events[:, 0].eq(0).all()
    pairs = set(zip(changes.flatten().tolist(), events.flatten().tolist(), strict=True))
    assert {(CHANGES[c], EVENTS[e]) for c, e in pairs} == {
        ("none", "none"),
        ("new here", "appears"),
        ("new here", "comes"),
        ("new here", "flashes"),
        ("gone from here", "leaves"),
        ("gone from here", "goes"),
        ("gone from here", "is over"),
        ("recoloured", "recolours"),
    }
    for t in range(1, FRAMES):
        still = target.same[:, t].eq(target.same[:, t - 1])
        assert changes[:, t].eq(0).all(dim=1).equal(still)


def test_a_new_model_tells_frames_apart_and_answers_as_the_one_for_pictures(grown):
    target = stills(seed=1, step=0, size=8, room=112)
    with torch.no_grad():
        right, asked = score(
            read_visuals(grown, seen(grown, target, False), target).logits, target, TAUGHT
        )["picture"]
        plain = grown_from(load()[0]).eval()
        plain.model.language_model.layers[1].self_attn.o_proj.weight.zero_()
        before, _ = score(
            read_visuals(plain, seen(plain, target, False), target).logits, target, TAUGHT
        )["picture"]
    assert asked > 50
    assert abs(right - before) <= 3
    assert right > 0.3 * asked
