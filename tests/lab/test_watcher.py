"""The model that watches: its start, its training, its answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

import secateur as sc
from secateur.lab import HELD_OUT, WATCHED, clips, load, load_watcher, scenes, watch
from secateur.lab.clip import FRAMES
from secateur.lab.training.filming import CHANGES, EVENTS, TAUGHT, film, stills
from secateur.lab.training.reading import read_visuals, score
from secateur.lab.training.watching import Run, Settings, seen, train
from secateur.lab.watched import every_question
from secateur.lab.watcher import POOLED, build_reader, evaluate_watching, grown_from, inputs

FOUR = Path(__file__).parents[2] / "benchmarks" / "lab-four"


def of_four_layers():
    return LlavaForConditionalGeneration.from_pretrained(FOUR, dtype=torch.float32)


@pytest.fixture(scope="module")
def grown():
    return grown_from(of_four_layers()).eval()


def test_it_grows_from_four_layers_only():
    with pytest.raises(ValueError, match=r"^pictures: 4 layers .* taken, not 6$"):
        grown_from(load()[0])


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
        plain = grown_from(of_four_layers()).eval()
        plain.model.language_model.layers[1].self_attn.o_proj.weight.zero_()
        before, _ = score(
            read_visuals(plain, seen(plain, target, False), target).logits, target, TAUGHT
        )["picture"]
    assert asked > 50
    assert abs(right - before) <= 3
    assert right > 0.3 * asked


@pytest.fixture(scope="module")
def watcher():
    return load_watcher()


def test_answers_on_held_out_clips(watcher):
    """Well above what the commonest answer would reach; the README has the measured shares."""
    shares = evaluate_watching(*watcher, clips(16, HELD_OUT))
    assert set(shares) == set(WATCHED)
    assert min(shares.values()) >= 0.85
    assert np.mean(list(shares.values())) >= 0.92


def test_watching_takes_several_clips_and_all_frames_matter(watcher):
    model, reader = watcher
    drawn = list(clips(6, seed=23, kind="when"))
    asked = [clip.questions[0] for clip in drawn]
    told = watch(model, reader, [clip.images for clip in drawn], [q.text for q in asked])
    right = [said == q.answer for said, q in zip(told, asked, strict=True)]
    assert sum(right) >= 5
    backwards = [clip.images[::-1] for clip in drawn]
    said = watch(model, reader, backwards, [q.text for q in asked])
    assert said != told


def test_pruned_answers_keep_what_is_read(watcher):
    """A label of two frames is read from a tenth of the tokens where they are the label's."""
    model, reader = watcher
    clip = next(clip for clip in clips(20, HELD_OUT) if any(q.brief for q in clip.questions))
    question = next(q for q in every_question(clip.actors, 6) if q.brief and q.kind == "reading")
    with sc.attach(model, sc.EVS(keep=18), reader) as attachment:
        (said,) = watch(model, reader, [clip.images], [question.text])
    assert said == question.answer
    assert set(question.tokens) <= set(attachment.last.kept[0].tolist())


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    settings = Settings(steps=2, size=1, pictures=1, room=60, warmup=1)
    whole = train(tmp_path / "whole", settings, FOUR)
    keep = Run.save

    def stop(run, path):
        keep(run, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", settings, FOUR, save_every=1)
    resumed = train(tmp_path / "stopped", settings, FOUR, resume=True)
    assert resumed.step == whole.step == 2
    first = grown_from(of_four_layers()).state_dict()
    learnt = set()
    for name, x in whole.model.state_dict().items():
        assert x.equal(resumed.model.state_dict()[name])
        learnt |= set() if x.equal(first[name]) else {name}
    assert "model.language_model.layers.1.self_attn.o_proj.weight" in learnt
    assert not any("vision_tower" in name or "projector" in name for name in learnt)
