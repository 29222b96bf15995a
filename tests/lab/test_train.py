"""Training: it learns, goes on where it stopped, and writes what the package loads."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from secateur.lab.model import build_clip, build_model
from secateur.lab.packaged import save, twin_in
from secateur.lab.training.attention import in_order
from secateur.lab.training.batches import Batch, batch
from secateur.lab.training.contrast import TextSettings, train_text
from secateur.lab.training.muon import BatchedMuon
from secateur.lab.training.reading import read
from secateur.lab.training.train import Probes, Run, Settings, main, rate_at, see, train

SMALL = Settings(steps=4, tower_steps=1, size=2, room=64, warmup=2)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    save_one = Run.save

    def save_each(run, path):
        save_one(run, path)
        shutil.copy(path, path.with_name(f"{run.step}.pt"))

    monkeypatch.setattr(Run, "save", save_each)
    whole = train(tmp_path / "whole", SMALL, save_every=2)
    (tmp_path / "stopped").mkdir()
    shutil.copy(tmp_path / "whole" / "2.pt", tmp_path / "stopped" / "checkpoint.pt")
    again = train(tmp_path / "stopped", SMALL, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    (first, *_) = lines(tmp_path / "stopped" / "train.log")
    assert first["start"] == 2
    assert first["seed"] == SMALL.seed


def test_gradients_are_added_in_one_order():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.zeros(64, 128, requires_grad=True)
        dice = torch.Generator().manual_seed(0)
        places = torch.randint(0, 64, (40_000,), generator=dice)
        weight = torch.randn(40_000, 128, generator=dice)

        def gradient():
            return torch.autograd.grad((x[places] * weight).sum(), x)[0]

        with in_order():
            first = gradient()
            assert all(torch.equal(gradient(), first) for _ in range(20))
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.set_num_threads(threads)


def test_several_processes_take_every_step_between_them(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = train(tmp_path, SMALL, processes=2)
    finally:
        torch.set_num_threads(threads)
    assert run.step == 4
    _, adam = run.optimizers
    taken = adam.state[run.model.model.multi_modal_projector.linear_1.bias]["step"]
    assert int(taken) == SMALL.steps - SMALL.tower_steps


def test_the_tower_learns_to_name_patches(tmp_path):
    train(tmp_path, Settings(steps=100, tower_steps=100, size=2, warmup=10))
    _, early, late = lines(tmp_path / "train.log")
    assert late["patches"] < 0.6 * early["patches"]


def test_a_grown_model_answers_as_before_and_all_its_layers_learn(tmp_path):
    model = build_model(seed=5)
    save(model, build_clip(model), tmp_path / "init")
    given = replace(SMALL, tower_steps=0, layers=6, focus=0.7, frozen=True, hear_weight=0.3)
    run = Run.begin(given, tmp_path / "init", torch.device("cpu"))
    target = batch(seed=0, step=0, size=2, room=64)
    before = LlavaForConditionalGeneration.from_pretrained(tmp_path / "init", dtype=torch.float32)
    assert len(run.model.model.language_model.layers) == 6
    with torch.no_grad():
        features, _ = see(before, target.images)
        told = read(before, features, target).logits
        torch.testing.assert_close(read(run.model, features, target).logits, told)
    run = train(tmp_path, given, init=tmp_path / "init")
    first, last = before.model.language_model, run.model.model.language_model
    for layer, origin in enumerate((0, 1, 2, None, None, 3)):
        down = last.layers[layer].mlp.down_proj.weight
        was = 0 if origin is None else first.layers[origin].mlp.down_proj.weight
        assert (down - was).abs().max() > 1e-4
    tower = run.model.model.vision_tower.state_dict()
    for name, weight in before.model.vision_tower.state_dict().items():
        assert torch.equal(weight, tower[name])


def told_nothing():
    """A batch of three tokens that say nothing but what a test adds."""
    given = dict.fromkeys(field.name for field in fields(Batch))
    return Batch(
        **given
        | {
            "heard": torch.full((1, 3, 3), -100),
            "wanted": torch.full((1, 3), -100),
            "aside": torch.zeros(1, 3, 9, dtype=torch.bool),
            "holds": torch.zeros(1, 3, 7, dtype=torch.bool),
        }
    )


def test_words_that_tell_where_what_they_name_lies_have_no_loss():
    told, states = told_nothing(), [torch.zeros(1, 3, 128) for _ in range(7)]
    told.heard[0, 1] = torch.tensor([4, 7, -100])
    probes = Probes()
    with torch.no_grad():
        for probe in probes.heard:
            probe.weight.copy_(30 * torch.eye(9, 128))
    states[3][0, 1, 4] = states[4][0, 1, 7] = 0.1
    assert probes.hear(states, told) < 1e-6
    states[3][0, 0, 5] = 1  # names nothing
    assert probes.hear(states, told) < 1e-6
    states[3][0, 1, 5] = 1
    assert probes.hear(states, told) > 1
    assert probes.hear(states, told_nothing()) == 0


def test_words_that_tell_what_lies_beside_a_thing_have_no_loss():
    told, states = told_nothing(), [torch.zeros(1, 3, 128) for _ in range(7)]
    told.aside[0, 1, [2, 5]] = told.holds[0, 1, 6] = True
    probes = Probes()
    with torch.no_grad():
        for probe in (probes.aside, probes.holds):
            probe.weight.copy_(60 * torch.eye(len(probe.weight), 128))
            probe.bias.fill_(-30)
    states[4][0, 1, [2, 5]] = states[5][0, 1, 6] = 0.1
    assert probes.hear(states, told) < 1e-6
    states[5][0, 1, 6] = 0
    assert probes.hear(states, told) > 1
    states[5][0, 1, 6] = 0.1
    states[4][0, 1, 5] = 0
    assert probes.hear(states, told) > 1


def test_words_that_tell_what_is_looked_for_have_no_loss():
    told, states = told_nothing(), [torch.zeros(1, 3, 128) for _ in range(7)]
    told.wanted[0, 1] = 3
    probes = Probes()
    with torch.no_grad():
        probes.wanted.weight.copy_(30 * torch.eye(7, 128))
    states[4][0, 1, 3] = 0.1
    assert probes.hear(states, told) < 1e-6
    states[4][0, 1, 3] = 0
    assert probes.hear(states, told) > 1


def test_muon_in_batches_is_muon():
    """Against PyTorch's, whose products are in bfloat16."""
    torch.manual_seed(0)
    ours = [torch.randn(shape) for shape in ((8, 16), (16, 8), (8, 16), (8, 8))]
    theirs = [weight.clone() for weight in ours]
    given = {"lr": 0.1, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    pair = BatchedMuon(ours, **given), torch.optim.Muon(theirs, **given)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for each in pair:
            each.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.01)


def test_rate_rises_and_falls():
    settings = Settings(steps=1000, warmup=100)
    rates = [rate_at(step, settings.steps, settings.warmup) for step in (0, 49, 99, 500, 1000)]
    assert rates == pytest.approx([0.01, 0.4971, 0.9763, 0.505, 0.01], abs=1e-3)


def test_what_is_saved_loads_again_and_can_be_gone_on_from(tmp_path):
    model = build_model(seed=5)
    twin = train_text(model, tmp_path, TextSettings(steps=2, size=4))
    save(model, twin, tmp_path / "weights")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "weights")
    clip = twin_in(tmp_path / "weights", "auto")
    assert loaded.dtype == clip.dtype == torch.bfloat16
    tower = loaded.model.vision_tower.state_dict()
    assert all(torch.equal(tower[k], v) for k, v in clip.vision_model.state_dict().items())
    assert all(torch.equal(clip.state_dict()[k], v) for k, v in twin.state_dict().items())
    run = Run.begin(SMALL, tmp_path / "weights", torch.device("cpu"))
    assert torch.equal(
        run.model.lm_head.weight, build_model(seed=5).lm_head.weight.bfloat16().float()
    )


def test_layers_are_not_taken_away():
    with pytest.raises(ValueError, match=r"^layers: it begins with 4, and none are taken away$"):
        Run.begin(replace(SMALL, layers=3), None, torch.device("cpu"))


def test_weights_without_a_twin_can_be_gone_on_from(tmp_path):
    four = Path(__file__).parents[2] / "benchmarks" / "lab-four"
    told = "--steps 1 --tower-steps 0 --size 1 --text-steps 1 --scenes 1 --layers 5"
    main(["--init", str(four), "--out", str(tmp_path), *told.split()])
    saved = LlavaForConditionalGeneration.from_pretrained(tmp_path / "weights")
    assert saved.config.text_config.num_hidden_layers == 5


def test_one_command_trains_saves_and_evaluates(tmp_path, capsys):
    told = "--steps 2 --tower-steps 1 --size 2 --text-steps 1 --scenes 1"
    main(["--out", str(tmp_path), *told.split()])
    reached = json.loads((tmp_path / "accuracy.json").read_text())
    assert set(reached) >= {"existence", "count", "caption", "places"}
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert set(reached) <= printed
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "weights")
