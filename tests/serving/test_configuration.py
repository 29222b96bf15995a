"""What cannot be served is told in one sentence, in the process that was started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import vllm
from small import asked_for_positions
from vllm.engine.arg_utils import EngineArgs

import secateur as sc
from secateur.integrations.vllm import (
    INTERNALS,
    ConfigurationError,
    architecture,
    checking,
    internals,
    missing,
    overrides,
)

NEXT = architecture("LlavaNextForConditionalGeneration")


def configuration(folder, asked, **how):
    """What vLLM makes of its arguments before it starts anything."""
    asked_for_positions()
    usual = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    return EngineArgs(str(folder), hf_overrides=asked, **usual, **how).create_engine_config()


REFUSED = [
    ({"method": "nothing"}, "method: expected one of"),
    ({"keep": 3}, 'expected {"method": name'),
    ({"method": "topk", "kept": 3}, "topk: no parameter 'kept'"),
    ({"method": "topk", "keep": 0}, "keep: a count is at least 1"),
    ({"method": "fastv"}, "acts inside the language model"),
    ({"method": "dycoke", "sight": 0.2}, "hides tokens while decoding by their attention"),
    ({"method": "tome"}, "acts inside the encoder"),
    ({"method": "erase"}, "needs pixels, which vLLM's llava_next does not give"),
    ({"method": "agilepruner", "count": "adaptive", "mean_erank": 9.0}, "take a fixed count"),
    ({"method": "agilepruner", "mean_erank": {"running": None}}, "depend on other requests"),
    ({"method": "downsample"}, "makes the picture smaller before it is encoded"),
    ({"method": "eadp", "rounding": "floor"}, "crops whose shares are rounded down"),
    (sc.published("eadp").to_dict(), "crops whose shares are rounded down"),
    (sc.published("vispruner").to_dict(), "needs states, which vLLM's llava_next does not give"),
    (sc.published("prumerge").to_dict(), "looks at the last layer of the tower"),
    (sc.published("duet").to_dict(), "duet as published acts inside the language model too"),
    (
        {
            "method": "mixture",
            "attention": {"method": "agilepruner", "count": "adaptive", "mean_erank": 9.0},
        },
        "take a fixed count",
    ),
]


@pytest.mark.parametrize(
    ("stored", "words"), REFUSED, ids=lambda x: x if isinstance(x, str) else ""
)
def test_methods_that_cannot_be_served(checkpoints, stored, words):
    asked = {"architectures": [NEXT], "secateur": stored}
    with pytest.raises(ConfigurationError) as caught:
        configuration(checkpoints("llava_next").folder, asked)
    told = str(caught.value)
    assert words in told
    assert told.startswith("secateur: ")
    assert "\n" not in told


def test_programs_that_number_kept_tokens_anew():
    published = sc.published("divprune", keep=9)
    overrides(published, "llava")
    with pytest.raises(
        ValueError, match="as published numbers kept tokens anew, and in vLLM's qwen3"
    ):
        overrides(published, "qwen3_vl")
    overrides(sc.DivPrune(keep=9), "qwen3_vl")


SETTINGS = [
    ("qwen3_vl", {"mm_encoder_tp_mode": "data"}, "mm_encoder_tp_mode='data' spreads images"),
    (
        "qwen3_vl",
        {"compilation_config": {"compile_mm_encoder": True}},
        "compile_mm_encoder hides; leave",
    ),
    ("qwen2_5_vl", {"video_pruning_rate": 0.5}, "--video-pruning-rate prunes videos a second"),
    ("llava_onevision", {"video_pruning_rate": 0.5}, "--video-pruning-rate prunes videos a"),
]


@pytest.mark.parametrize(("name", "how", "words"), SETTINGS, ids=lambda x: str(x)[:20])
def test_settings_that_do_not_go_with_it(checkpoints, name, how, words):
    checkpoint = checkpoints(name)
    with pytest.raises(ConfigurationError, match=words):
        configuration(checkpoint.folder, overrides(sc.TopK(keep=9), checkpoint.kind), **how)


@pytest.mark.parametrize(
    ("newlines", "words"),
    [("rows", "which rows keep a token is not known"), ("some", "expected one of rows, all, none")],
)
@pytest.mark.parametrize("name", ["llava_next", "mistral3", "pixtral"])
def test_newlines_that_cannot_be_counted(checkpoints, name, newlines, words):
    checkpoint = checkpoints(name)
    asked = overrides(sc.DivPrune(keep=9), checkpoint.kind, newlines=newlines)
    with pytest.raises(ConfigurationError, match=words):
        configuration(checkpoint.folder, asked)


def test_a_method_that_no_architecture_reads(checkpoints):
    asked = {"secateur": sc.TopK(keep=9).to_dict()}
    with pytest.raises(ConfigurationError, match='add "architectures": \\["SecateurLlavaNext'):
        configuration(checkpoints("llava_next").folder, asked)


def test_an_architecture_of_another_model(checkpoints):
    asked = overrides(sc.TopK(keep=9), "llava")
    with pytest.raises(
        ConfigurationError, match="serves llava, and this checkpoint is a qwen2_5_vl"
    ):
        configuration(checkpoints("qwen2_5_vl").folder, asked)


def test_qwen_on_a_processor_that_does_not_ask(checkpoints, monkeypatch):
    asked = overrides(sc.TopK(keep=9), "qwen2_5_vl")
    asked_for_positions()
    monkeypatch.setattr(checking, "CPU_ASKS", False)
    monkeypatch.setattr("small.asked_for_positions", lambda: None)
    monkeypatch.setitem(globals(), "asked_for_positions", lambda: None)
    with pytest.raises(ConfigurationError, match="does not ask where kept tokens were"):
        configuration(checkpoints("qwen2_5_vl").folder, asked)


def test_all_processes_are_told_that_positions_are_asked_for(checkpoints):
    made = configuration(checkpoints("qwen2_5_vl").folder, overrides(sc.TopK(), "qwen2_5_vl"))
    assert made.model_config.multimodal_config.video_pruning_rate == checking.RATE
    assert made.model_config.multimodal_config.is_multimodal_pruning_enabled()
    made = configuration(checkpoints("llava").folder, overrides(sc.TopK(), "llava"))
    assert made.model_config.multimodal_config.video_pruning_rate is None


def test_a_vllm_without_our_names_is_refused(checkpoints, monkeypatch):
    monkeypatch.setitem(internals.INTERNALS, "config.multimodal", ("Nothing.of_the_kind",))
    with pytest.raises(ConfigurationError, match=r"lacks vllm\.config\.multimodal\.Nothing"):
        configuration(checkpoints("llava").folder, overrides(sc.TopK(), "llava"))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (sc.AgilePruner(mean_erank=sc.RunningCalibration()), "depend on other requests"),
        (sc.Mixture(attention=sc.AgilePruner(mean_erank=sc.RunningCalibration())), "depend on"),
        (sc.AgilePruner(), "mean_erank: how complex an image is shows beside others only"),
        (sc.PruMergePlus(adaptive=True), "take a fixed count"),
    ],
    ids=lambda x: "" if isinstance(x, str) else x.name,
)
def test_overrides_refuses_what_the_server_would(method, words):
    with pytest.raises(ValueError, match=words):
        overrides(method)


def test_a_wrong_configuration_of_a_server(checkpoints):
    asked = overrides(sc.TopK(keep=9))
    asked["secateur"]["keep"] = 0
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
        *(str(checkpoints("llava").folder), "--hf-overrides", json.dumps(asked)),
    ]
    stock = time.perf_counter()
    subprocess.run([*command[:4], "--help"], capture_output=True, check=True)
    stock = time.perf_counter() - stock
    start = time.perf_counter()
    told = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"},
    )
    seconds = time.perf_counter() - start
    assert told.returncode != 0
    lines = [line for line in told.stdout.splitlines() if "nanobind" not in line and line.strip()]
    lines = [line for line in lines if not line.startswith(" - ")]
    assert lines[-1].endswith("secateur: keep: a count is at least 1, got 0"), told.stdout[-2000:]
    assert "EngineCore" not in told.stdout
    # What importing vLLM takes, and looking at the checkpoint; no process is started for it.
    assert seconds < 3 * stock + 20, (seconds, stock)


def test_families_nobody_serves():
    with pytest.raises(ValueError, match="no plug-in for vLLM's 'paligemma' yet; there is one fo"):
        overrides(sc.TopK(), "paligemma")


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        (
            "pixtral",
            "llava",
            "serves llava, and this checkpoint is a pixtral; take SecateurPixtral",
        ),
        ("llava", "pixtral", "serves pixtral, and this checkpoint is a llava; take SecateurLlavaF"),
    ],
)
def test_pixtral_and_llava_are_told_apart_by_their_towers(checkpoints, name, other, words):
    folder = checkpoints(name).folder
    made = configuration(folder, overrides(sc.TopK(keep=9), name))
    assert made.model_config.hf_config.model_type == "llava"
    with pytest.raises(ConfigurationError, match=words):
        configuration(folder, overrides(sc.TopK(keep=9), other))
    with pytest.raises(ConfigurationError, match=f"Secateur{name.title()}For"):
        configuration(folder, {"secateur": sc.TopK(keep=9).to_dict()})


def test_features_of_pixtral_are_all_patches(checkpoints):
    asked = overrides(sc.TopK(keep=9), "pixtral") | {"vision_feature_select_strategy": "default"}
    with pytest.raises(ConfigurationError, match="_strategy: the features must be all patches"):
        configuration(checkpoints("pixtral").folder, asked)


@pytest.mark.parametrize("kind", ["pixtral", "mistral3"])
def test_what_mistral_publishes_in_its_own_format(tmp_path, kind):
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 96, "patch_size": 8}
    params = {"dim": 128, "n_layers": 2, "head_dim": 64, "hidden_dim": 160, "n_heads": 2}
    params |= {"n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 160, "max_seq_len": 512}
    (tmp_path / "params.json").write_text(json.dumps({**params, "vision_encoder": vision}))
    how = {"config_format": "mistral", "skip_tokenizer_init": True}
    method = sc.TopK(keep=9)
    for asked in (overrides(method, kind), {"secateur": method.to_dict()}):
        with pytest.raises(ConfigurationError, match="Mistral's own format; take one with a conf"):
            configuration(tmp_path, asked, **how)


@pytest.mark.parametrize("name", ["gemma3", "gemma4-both-ways"])
def test_images_that_are_read_both_ways(checkpoints, monkeypatch, name):
    asked_for_positions()
    monkeypatch.setattr(checking, "CPU_SEES_BOTH_WAYS", False)
    monkeypatch.setitem(globals(), "asked_for_positions", lambda: None)
    asked = overrides(sc.TopK(keep=9), checkpoints(name).kind)
    with pytest.raises(ConfigurationError, match=r"gemma\d on a CPU: vLLM's attention for CPUs do"):
        configuration(checkpoints(name).folder, asked)


def test_smaller_gemma_4_reads_images_one_way(checkpoints, monkeypatch):
    asked_for_positions()
    monkeypatch.setattr(checking, "CPU_SEES_BOTH_WAYS", False)
    monkeypatch.setitem(globals(), "asked_for_positions", lambda: None)
    made = configuration(checkpoints("gemma4").folder, overrides(sc.TopK(keep=9), "gemma4"))
    assert made.model_config.architecture == "SecateurGemma4ForConditionalGeneration"


def test_what_vllm_asks_about_its_own_class_is_asked_about_ours(checkpoints):
    asked = overrides(sc.TopK(keep=9), "qwen3_5")
    # That of the checkpoint's own configuration, which vLLM would have ignored.
    asked["text_config"] = {"mamba_ssm_dtype": "float32"}
    made = configuration(checkpoints("qwen3_5").folder, asked)
    assert made.cache_config.mamba_ssm_cache_dtype == "float32"
    ignored = {"secateur": sc.TopK(keep=9).to_dict()}
    with pytest.raises(ConfigurationError, match='"architectures": \\["SecateurQwen3_5For'):
        configuration(checkpoints("qwen3_5").folder, ignored)


@pytest.mark.parametrize("kind", ["internvl", "smolvlm", "gemma3", "gemma4", "qwen3_5"])
def test_pictures_nobody_counts_by_pixels(kind):
    with pytest.raises(ValueError, match=f"erase needs pixels, which vLLM's {kind} does not give"):
        overrides(sc.ERASE(), kind)


@pytest.mark.parametrize("kind", ["internvl", "smolvlm"])
def test_tiles_are_counted_before_they_are_seen(kind):
    overrides(sc.EADP(keep=9), kind)
    with pytest.raises(ValueError, match="crops whose shares are rounded down"):
        overrides(sc.EADP(keep=9, rounding="floor"), kind)


@pytest.mark.parametrize("name", ["internvl", "gemma3", "gemma4", "mistral3"])
def test_towers_nobody_watches(checkpoints, name):
    asked = overrides(sc.TopK(keep=9), name)
    asked["vision_config"] = {"model_type": "other_vision"}
    with pytest.raises(ConfigurationError, match=f"{name} with a other_vision is not served; take"):
        configuration(checkpoints(name).folder, asked)


def test_vllm_still_has_what_the_plugin_uses():
    assert missing() == [], f"vLLM {vllm.__version__} lacks {missing()}; adapt secateur's plug-in"


def test_missing_tells_names(monkeypatch):
    from vllm.model_executor.models import llava

    monkeypatch.delattr(llava.LlavaForConditionalGeneration, "_process_image_input")
    monkeypatch.setitem(INTERNALS, "nowhere", ("thing",))
    assert missing() == [
        "vllm.model_executor.models.llava.LlavaForConditionalGeneration._process_image_input",
        "vllm.nowhere",
    ]
