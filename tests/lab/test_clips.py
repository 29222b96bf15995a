"""Clips: drawn by their seed alone, moving as they say, answers following from what is seen."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from secateur.lab import WATCHED, clips
from secateur.lab.clip import NOISE, SIDE, draw_clip, strip
from secateur.lab.watched import every_question

DRAWN = list(clips(80, seed=5))


def shown(clip):
    """For each frame the shapes and labels by name, with their places: what a viewer sees."""
    frames = range(len(clip.images))
    states = [[a.states[t] for a in clip.actors if a.states[t] is not None] for t in frames]
    return [{thing.phrase: thing.place for thing in there} for there in states]


def shapes(frame):
    return {k: v for k, v in frame.items() if not k.startswith(("word", "number"))}


def news(frames):
    """What appears, leaves, moves or changes colour, as (what, before, after, frame) of shapes."""
    found = []
    for t in range(1, len(frames)):
        before, after = shapes(frames[t - 1]), shapes(frames[t])
        came = {k: v for k, v in after.items() if k not in before}
        went = {k: v for k, v in before.items() if k not in after}
        for old, place in list(went.items()):
            for new, there in list(came.items()):
                if place == there:
                    found.append(("change colour", old, new, t))
                    del went[old], came[new]
        found += [("appear", k, v, t) for k, v in came.items()]
        found += [("leave", k, v, t) for k, v in went.items()]
        moved = [k for k in after if before.get(k, after[k]) != after[k]]
        found += [("move", k, after[k], t) for k in moved]
    return found


def answer_of(text, frames):
    """What a viewer would say; everything is read off the frames."""
    happened = news(frames)
    if match := re.fullmatch(r"what shape (appears at|leaves) the (.*)\?", text):
        pairs = list(itertools.pairwise([{v: k for k, v in shapes(f).items()} for f in frames]))
        if match[1] == "leaves":
            pairs = [(after, before) for before, after in pairs]
        new = (b[match[2]] for a, b in pairs if match[2] in b and match[2] not in a)
        return next(new, "nothing")
    if match := re.fullmatch(r"when does the (.*?) (appear|leave|move|change colour)\?", text):
        return str(next(t for verb, what, _, t in happened if (what, verb) == match.groups()) + 1)
    if match := re.fullmatch(r"what colour does the (.*) become\?", text):
        return next(new for _, what, new, _ in happened if what == match[1]).split()[0]
    if match := re.fullmatch(r"how many shapes are there at the (start|end)\?", text):
        return str(len(shapes(frames[0 if match[1] == "start" else -1])))
    if match := re.fullmatch(r"where does the (.*) (?:go|appear)\?", text):
        return frames[-1][match[1]]
    if match := re.fullmatch(r"where (?:is|was) the (word|number)\?", text):
        return next(v for f in frames for k, v in f.items() if k.startswith(match[1]))
    if match := re.fullmatch(r"where (?:is|was) the (.*)\?", text):
        return next(f[match[1]] for f in frames if match[1] in f)
    if match := re.fullmatch(r"what (word|number) is shown\?", text):
        return next(k for f in frames for k in f if k.startswith(match[1])).split()[1]
    match = re.fullmatch(r"when is the (word|number) shown\?", text)
    return str(1 + next(t for t, f in enumerate(frames) if any(k.startswith(match[1]) for k in f)))


def test_the_same_seed_draws_the_same_clips():
    again = list(clips(4, seed=5))
    assert [clip.digest for clip in again] == [clip.digest for clip in DRAWN[:4]]
    assert next(clips(1, seed=5, start=3)).digest == DRAWN[3].digest
    assert len({clip.digest for clip in (*DRAWN[:4], *clips(4, seed=6))}) == 8


def test_answers_follow_from_the_frames():
    told = Counter()
    for clip in DRAWN:
        frames = shown(clip)
        for question in every_question(clip.actors, SIDE):
            assert question.answer == answer_of(question.text, frames), (clip.index, question)
            told[question.kind] += 1
    assert set(told) == set(WATCHED)
    assert min(told.values()) >= 60


def test_no_kind_is_answered_by_habit():
    asked = [question for clip in DRAWN for question in clip.questions]
    for kind in WATCHED:
        said = Counter(question.answer for question in asked if question.kind == kind)
        assert said.most_common(1)[0][1] < 0.45 * sum(said.values())


def test_frames_show_what_they_say_and_nothing_else_changes():
    """Neighbouring frames differ by noise, but where an actor changes, and there they do."""
    quiet, loud = [], []
    for clip in DRAWN[:30]:
        for t in range(1, len(clip.images)):
            apart = np.abs(clip.images[t].astype(float) - clip.images[t - 1])
            changed = np.zeros(apart.shape[:2], dtype=bool)
            for actor in clip.actors:
                before, after = actor.states[t - 1], actor.states[t]
                if before != after:
                    for thing in (before, after):
                        if thing is not None:
                            left, top, right, bottom = thing.box
                            changed[top:bottom, left:right] = True
                            loud.append(apart[top:bottom, left:right].mean())
            quiet.append(apart[~changed].mean())
    # The mean distance of two normal numbers is 2 / sqrt(pi) of their standard deviation.
    assert np.median(quiet) == pytest.approx(2 / np.sqrt(np.pi) * NOISE, rel=0.2)
    assert max(quiet) < 2 * NOISE
    assert np.mean(np.array(loud) > 3 * NOISE) > 0.95


@pytest.mark.parametrize("frames", [8, 16])
def test_a_label_is_shown_for_an_eighth_to_a_quarter(frames):
    lengths = {
        len(actor.seen)
        for clip in clips(40, 3, frames=frames)
        for actor in clip.actors
        if actor.role == "flashes"
    }
    assert lengths == set(range(frames // 8, frames // 4 + 1))


def test_questions_say_which_tokens_show_the_answer():
    for clip in DRAWN:
        labels = [actor for actor in clip.actors if actor.role == "flashes"]
        for question in every_question(clip.actors, SIDE):
            assert list(question.tokens) == sorted(set(question.tokens))
            if question.kind == "what":
                assert bool(question.tokens) == (question.answer != "nothing")
            if question.tokens:
                assert 0 <= question.tokens[0] <= question.tokens[-1] < 8 * SIDE**2
            if question.brief and question.kind == "reading":
                assert {t // SIDE**2 for t in question.tokens} == set(labels[0].seen)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="kind must be one of what, where"):
        next(clips(1, 0, "colour"))
    with pytest.raises(ValueError, match="frames: expected 8 to 16, got 4"):
        next(clips(1, 0, frames=4))
    assert draw_clip(0, 0).images.shape == (8, 96, 96, 3)
    assert strip(draw_clip(0, 0).images).shape == (96, 8 * 96 + 7 * 2, 3)
