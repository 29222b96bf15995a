"""The lab's model: its words, its eyes, and that many questions at once are one at a time."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from secateur.lab import scenes
from secateur.lab.model import build_clip, build_model, build_processor, build_text_tokenizer
from secateur.lab.objects import KINDS, SHAPES
from secateur.lab.training.attention import PLAIN
from secateur.lab.training.batches import batch, pixels
from secateur.lab.training.growing import grow
from secateur.lab.training.reading import read, read_visuals, score
from secateur.lab.training.searches import searches
from secateur.lab.training.train import see


@pytest.fixture(scope="module")
def model():
    return build_model(seed=3).eval()


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_tokeniser_gives_every_text_back(processor):
    tokenizer = processor.tokenizer
    texts = {t for s in scenes(60, seed=1) for q in s.questions for t in (q.text, q.answer)}
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokeniser_reads_capitals_and_flags_what_it_does_not_know(processor):
    tokens = processor.tokenizer.convert_ids_to_tokens(
        processor.tokenizer("What COLOUR is number 47, giraffe?").input_ids
    )
    assert tokens[1:] == ["what", "colour", "is", "number", "4", "##7", ",", "<unk>", "?"]


def test_processor_sees_what_training_sees(processor):
    image = next(scenes(1, seed=2)).image
    seen = processor(images=image, text="<image>how many stars are there?", return_tensors="pt")
    torch.testing.assert_close(seen["pixel_values"], pixels(torch.from_numpy(image)[None]))
    assert seen["input_ids"].shape == (1, 1 + 144 + 6)


def test_chat_template_is_the_prompt(processor):
    content = [{"type": "image"}, {"type": "text", "text": "how many stars are there?"}]
    told = processor.apply_chat_template([{"role": "user", "content": content}])
    assert told == "<image>how many stars are there?"


def test_questions_packed_on_a_picture_read_as_if_each_were_alone(model, processor):
    """Training's mask and positions give the logits of one ordinary prompt after another."""
    target = batch(seed=7, step=0, size=2, room=80)
    with torch.no_grad():
        found = read(model, see(model, target.images)[0], target)
    logits, wanted = found.logits, found.wanted
    drawn = list(scenes(2, seed=7))
    texts = [[(q.text, q.answer) for q in scene.questions] for scene in drawn]
    start = 0
    for row, scene in enumerate(drawn):
        for turn in range(int(target.turns[row].max()) + 1):
            mine = target.turns[row] == turn
            said = processor.tokenizer.decode(target.tokens[row][mine])
            answer = next(a for q, a in texts[row] if said == f"{q} {a}")
            inputs = processor(images=scene.image, text=f"<image>{said}", return_tensors="pt")
            with torch.no_grad():
                alone = model(**inputs).logits[0, 145:]
            asked = target.targets[row][mine] != -100
            count = int(asked.sum())
            torch.testing.assert_close(
                logits[start : start + count], alone[asked], rtol=1e-4, atol=1e-4
            )
            ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
            end = processor.tokenizer.eos_token_id
            assert wanted[start : start + count].tolist() == [*ids, end]
            start += count
    assert start == len(logits)


def test_plain_attention_is_attention(model):
    target = batch(seed=7, step=1, size=2, room=60)
    plain = build_model(seed=3).eval()
    plain.set_attn_implementation(PLAIN)
    with torch.no_grad():
        ours = read(plain, see(plain, target.images)[0], target)
        fused = read(model, see(model, target.images)[0], target)
    torch.testing.assert_close(ours.logits, fused.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pointing, fused.pointing, rtol=1e-4, atol=1e-4)


def test_pointing_is_at_what_an_answer_speaks_of():
    """The patches of each place an answer's token speaks of are those of the question."""
    target = batch(seed=7, step=0, size=2, room=80)
    patches = torch.einsum("btp,bpn->btn", target.looks.float(), target.cover.float()) > 0
    for row, scene in enumerate(scenes(2, seed=7)):
        by_text = {q.text: q for q in scene.questions}
        for turn, kind in enumerate(target.kinds[row].tolist()):
            if kind < 0:
                continue
            mine = (target.turns[row] == turn) & (target.targets[row] != -100)
            union = patches[row][mine].any(dim=0).nonzero().flatten().tolist()
            if KINDS[kind] == "caption":
                assert tuple(union) == by_text["describe the scene."].patches
            elif KINDS[kind] != "places":
                assert tuple(union) in {q.patches for q in scene.questions if q.kind == KINDS[kind]}


def test_words_are_told_where_what_they_name_lies(processor):
    """Every kind of relation and dense question, against the scene's own objects."""
    target = batch(seed=7, step=0, size=8, room=240, focus=0.8)
    yes_or_no = neighbours = dense = 0
    for row, scene in enumerate(scenes(8, seed=7)):
        at = {(thing.row, thing.column): thing.phrase for thing in scene.objects}
        for turn in range(int(target.turns[row].max()) + 1):
            mine = target.turns[row] == turn
            kind = KINDS[int(target.kinds[row, turn])]
            words = processor.tokenizer.decode(target.tokens[row][mine])
            asked, _, said = words.partition("?")
            said = said.strip()
            heard, looks = target.heard[row][mine], target.looks[row][mine]
            named, first, second = (column[column >= 0].tolist() for column in heard.T)
            for word, place in enumerate(heard[:, 0].tolist()):
                if place >= 0:
                    assert looks[word].nonzero().flatten().tolist() == [place]
            for place in named if kind == "relation" else ():
                assert at[divmod(place, 3)] in asked
            if kind == "relation" and asked.startswith("is"):
                (above, below), (left, right) = zip(
                    *(divmod(p, 3) for p in first + second), strict=True
                )
                holds = {
                    "above": above < below,
                    "below": above > below,
                    "to the left": left < right,
                    "to the right": left > right,
                }
                way = next(name for name in holds if name in asked)
                assert said == ("yes" if holds[way] else "no")
                assert [named[0], named[1]] == first + second
                yes_or_no += 1
            elif kind == "relation":
                assert first == named
                assert said == at.get(divmod(*second, 3), "nothing")
                neighbours += 1
            elif kind == "dense":
                assert first == 2 * named
                assert at[divmod(*named, 3)].split()[0] == said.split(",")[0]
                dense += 1
            else:
                assert first == second == []
    assert min(yes_or_no, neighbours, dense) > 10


def test_words_are_told_what_lies_beside_what_they_name(processor):
    """At "it" and before a dense yes or no the column's places, before a neighbour its own."""
    target = batch(seed=7, step=0, size=8, room=200, focus=0.8)
    neighbours = dense = 0
    for row, scene in enumerate(scenes(8, seed=7)):
        shapes = {(t.row, t.column): t.name for t in scene.objects if not t.is_label}
        for turn in range(int(target.turns[row].max()) + 1):
            mine = target.turns[row] == turn
            aside, holds = target.aside[row][mine], target.holds[row][mine]
            words = processor.tokenizer.convert_ids_to_tokens(target.tokens[row][mine])
            at = aside.any(dim=-1).nonzero().flatten().tolist()
            assert not holds[[i for i in range(len(words)) if i not in at]].any()
            for token in at:
                places = [divmod(p, 3) for p in aside[token].nonzero().flatten().tolist()]
                held = {SHAPES[i] for i in holds[token].nonzero().flatten().tolist()}
                assert held == {shapes[place] for place in places if place in shapes}
            if "it" not in words:
                assert [words[token] for token in at] == ["?"] * len(at)
                told = target.heard[row][mine][at, 2]
                assert [divmod(place, 3) for place in told.tolist()] == (places if at else [])
                neighbours += len(at)
                continue
            assert [words[token] for token in at] == ["it", ","]
            wanted, side = words[words.index("it") - 2], words[words.index("it") - 1]
            down, right = divmod(int(target.heard[row][mine][at[0], 1]), 3)
            rows = range(down) if side == "above" else range(down + 1, 3)
            assert places == [(other, right) for other in rows]
            assert (wanted in held) == (words[-1] == "yes")
            sought = target.wanted[row][mine]
            assert sought[at].tolist() == 2 * [SHAPES.index(wanted)]
            assert int((sought >= 0).sum()) == 2
            dense += 1
    assert min(neighbours, dense) > 10


def test_late_one_head_looks_beside_what_is_named():
    """The other pointing heads look at what an answer speaks of, the last at the places aside."""
    target = batch(seed=7, step=0, size=2, room=80, focus=0.8)
    deep = grow(build_model(seed=3), [2, 2]).eval()
    with torch.no_grad():
        features = see(deep, target.images)[0]
        before = read(deep, features, target).pointing
        searched = target.aside.any(dim=-1, keepdim=True)
        beside = torch.where(searched, target.aside, target.looks)
        visuals = deep.model.multi_modal_projector(features)
        early = read_visuals(deep, visuals, target, {1: target.looks, 2: target.looks}).pointing
        late = read_visuals(deep, visuals, target, {4: beside}).pointing
    torch.testing.assert_close(before, early + late)


def test_few_searches_to_learn_from_can_be_guessed():
    """Yes is said as often as not, also of what lies somewhere in the scene."""
    answers, anywhere = [], []
    for number, scene in enumerate(scenes(60, seed=7)):
        asked = searches(np.random.default_rng(number), scene.objects, 14)
        assert len({question.text for question in asked}) == len(asked) <= 14
        for question in asked:
            wanted = question.text.split()[-3]
            answers.append(question.answer.endswith("yes"))
            anywhere.append(any(thing.name == wanted for thing in scene.objects))
            assert anywhere[-1] or not answers[-1]
    assert 0.35 < np.mean(answers) < 0.5
    assert np.mean(np.array(answers) == np.array(anywhere)) < 0.65


def test_held_out_questions_stay_what_they_are():
    """Whatever is asked more of in training: every accuracy in print is of these."""
    digest = hashlib.sha256()
    for scene in scenes(40, seed=1):
        digest.update(repr(scene.questions).encode())
    assert digest.hexdigest() == "ed223806ae021c6006ee0750ff987c05ee0d2dca70195104b7204b266f366520"


def test_a_focus_asks_more_of_what_is_hard():
    def share(focus):
        kinds = batch(seed=7, step=0, size=8, room=200, focus=focus).kinds
        hard = [KINDS.index("relation"), KINDS.index("dense")]
        return float(sum((kinds == kind).sum() for kind in hard) / (kinds >= 0).sum())

    assert share(0.0) < 0.4 < share(0.5) < share(0.9)


def test_score_counts_whole_answers():
    target = batch(seed=7, step=0, size=2, room=80)
    asked = target.targets != -100
    logits = torch.nn.functional.one_hot(target.targets[asked], 200).float()
    kinds = [KINDS[i] for i in target.kinds.flatten().tolist() if i >= 0]
    assert score(logits, target, KINDS) == {k: (kinds.count(k), kinds.count(k)) for k in KINDS}
    logits[0] = 0
    first = KINDS[int(target.kinds[0, 0])]
    assert score(logits, target, KINDS)[first] == (kinds.count(first) - 1, kinds.count(first))


def test_probes_are_told_what_patches_show():
    target = batch(seed=7, step=0, size=4, room=60)
    for row, scene in enumerate(scenes(4, seed=7)):
        shown = {int(i) for i in np.flatnonzero(target.patches["name"][row])}
        covered = {patch for thing in scene.objects for patch in thing.patches}
        assert shown <= covered
        assert len(shown) > len(covered) / 2
        assert int(target.patches["middle"][row].sum()) == len(scene.objects)


def test_twin_has_the_same_eyes_and_pools_at_the_end(model):
    twin = build_clip(model).eval()
    ours, theirs = model.model.vision_tower.state_dict(), twin.vision_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizer = build_text_tokenizer()
    inputs = tokenizer(
        ["a red star", "what colour is the star?"], padding=True, return_tensors="pt"
    )
    ends = (inputs["input_ids"] == tokenizer.eos_token_id).int().argmax(dim=1)
    assert ends.tolist() == [4, 7]
    with torch.no_grad():
        out = twin.text_model(**inputs)
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state[[0, 1], ends])


def test_drawing_needs_neither_torch_nor_transformers():
    program = (
        "import json, sys; import secateur; lazy = 'secateur.lab' not in sys.modules;"
        "import secateur.lab; next(secateur.lab.scenes(1, 0));"
        "print(json.dumps([lazy, 'torch' in sys.modules, 'transformers' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [True, False, False]
