"""Measures of continuations at each validation, and the hparams tab, in runs of the trainer."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_measures
from conftest import make_model
from experiment_folder import newest_record
from lhotse import CutSet
from run_settings import NO_SETTINGS, settings_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tiny_cuts import write_manifest
from trainer import get_parser
from trainer_runs import TRAINER, arguments, differences, log_of, start_trainer, train
from training_measures import ContinuationMeter

from valle.data import Codec, cut_codes
from valle.data.manifest import load_cuts
from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import read_scalars

# 12 s of training in 4 steps, two validations within the epoch
FLAGS = ("--sample-epochs", 0, "--num-epochs", 1, "--valid-interval", 2, "--prompt-ratio", 0.25)


@pytest.fixture(scope="module")
def long_tokens(codec_info, tmp_path_factory) -> Path:
    """Tokens of the tiny codec; validation cuts of 2 s, two of each recording but the last."""
    folder = tmp_path_factory.mktemp("long")
    write_manifest(folder, [2.0] * 9, "train", codec_info)
    write_manifest(folder, [4.0, 4.0, 2.0], "validation", codec_info, window_sec=2.0)
    return folder


@pytest.fixture(scope="module")
def measured(long_tokens, tmp_path_factory) -> tuple[Path, str]:
    exp_dir = tmp_path_factory.mktemp("measured")
    return exp_dir, train(long_tokens, exp_dir, *FLAGS, "--measured-cuts", 2)


@pytest.fixture(scope="module")
def valid_cuts(long_tokens) -> CutSet:
    return load_cuts(long_tokens / "cuts_validation.jsonl.gz")


def steps(points) -> list[int]:
    return [point.step for point in points]


def test_each_validation_is_measured(measured):
    scalars = read_scalars(measured[0] / "tensorboard")
    validations = steps(scalars["train/valid_loss"])
    assert len(validations) > 1
    names = {tag.split("/")[1] for tag in scalars if tag.startswith("valid_sounds/")}
    assert {"in_loops", "entropy", "chroma_similarity"} <= names
    for name in names:
        assert steps(scalars[f"valid_sounds/{name}"]) == validations
    true = {tag.split("/")[1] for tag in scalars if tag.endswith("/true")}
    assert true == names - {"chroma_similarity", "onset_similarity", "frechet_mel_paired"}
    for name in true:
        points = scalars[f"valid_sounds/{name}/true"]
        assert steps(points) == validations
        assert len({point.value for point in points}) == 1
    assert measured[1].count("Measured 2 continuations in ") == len(validations)


def test_bits_a_second_are_those_of_all_quantizers(measured):
    scalars = read_scalars(measured[0] / "tensorboard")
    levels = [scalars[f"train/valid_loss_q{q}"][-1].value for q in (1, 2, 3)]
    bits = scalars["train/valid_bits_a_second"][-1].value
    assert bits == pytest.approx(sum(levels) / math.log(2) * 50, rel=1e-5)


def test_measuring_changes_nothing_in_training(measured, long_tokens, tmp_path):
    """Weights, optimizer, random numbers, counters: all but the flag."""
    log = train(long_tokens, tmp_path, *FLAGS, "--measured-cuts", 0)
    assert "Measured" not in log
    assert differences(tmp_path / "epoch-1.pt", measured[0] / "epoch-1.pt") == [".measured_cuts"]
    assert not any("valid_sounds" in tag for tag in read_scalars(tmp_path / "tensorboard"))


def test_what_draws_while_measuring_changes_nothing_in_training(
    measured, long_tokens, tmp_path, monkeypatch
):
    real = training_measures.fast_measures

    def drawing(*args):
        torch.rand(3)
        return real(*args)

    monkeypatch.setattr(training_measures, "fast_measures", drawing)
    train(long_tokens, tmp_path, *FLAGS, "--measured-cuts", 2)
    assert differences(tmp_path / "epoch-1.pt", measured[0] / "epoch-1.pt") == []


def make_meter(cuts, codec_dir, num_levels: int = 3, **changes) -> ContinuationMeter:
    options = {"prompt_ratio": 0.25, "num_cuts": 2, "seed": 1} | changes
    codec = Codec.from_pretrained(codec_dir)
    return ContinuationMeter(cuts, codec, num_levels=num_levels, **options)


def test_passages_are_the_true_cuts_and_as_long(valid_cuts, codec_dir):
    codec, model = Codec.from_pretrained(codec_dir), make_model(num_audio_tokens=16).train()
    for num_levels in (3, 1):
        meter = make_meter(valid_cuts, codec_dir, num_levels)
        passages = meter.passages(model, lambda _: None)
        assert [p.recording for p in passages] == ["validation-0", "validation-1"]
        cut = next(iter(valid_cuts))
        codes = torch.from_numpy(cut_codes(cut))
        sound = codec.decode(codes[None, :, :num_levels])[0][0]
        first = passages[0]
        assert first.name == cut.id
        torch.testing.assert_close(torch.cat([first.prompt, first.true]), sound)
        assert len(first.prompt) == 25 * codec.hop_length
        assert torch.equal(first.true_codes, codes[25:, 0])
        for passage in passages:
            assert passage.samples[0].shape == passage.true.shape
            assert passage.sample_codes[0].shape == passage.true_codes.shape
            assert not torch.equal(passage.sample_codes[0], passage.true_codes)
        again = meter.passages(model, lambda _: None)
        assert torch.equal(again[1].samples[0], passages[1].samples[0])
    assert model.training


def test_a_model_that_ends_at_once_is_still_measured_over_the_whole_time(valid_cuts, codec_dir):
    model = make_model(num_audio_tokens=16)
    with torch.no_grad():
        model.ar.head.bias[model.eos_id] = 100.0
    passages = make_meter(valid_cuts, codec_dir).passages(model, lambda _: None)
    assert [len(p.sample_codes[0]) for p in passages] == [75, 75]


def test_too_short_cuts_and_what_is_to_be_done(valid_cuts, codec_dir):
    meter = make_meter(valid_cuts, codec_dir, prompt_ratio=0.5)
    with pytest.raises(ValueError, match="no validation cut has 1 s left after its prompt"):
        meter.measure(make_model(num_audio_tokens=16), lambda _: None)


@pytest.mark.parametrize(("stage", "num_levels"), [(0, 3), (1, 1), (2, 3)])
def test_figures_are_those_of_the_model_by_the_quantizers_it_has_learned(
    measured, long_tokens, tmp_path, valid_cuts, codec_dir, stage, num_levels
):
    exp_dir, folder = measured[0], measured[0] / "tensorboard"
    if stage:
        exp_dir, folder = tmp_path, tmp_path / f"tensorboard_stage{stage}"
        start = ("--ar-checkpoint", measured[0] / "epoch-1.pt", "--train-stage", stage)
        train(long_tokens, exp_dir, *FLAGS, "--measured-cuts", 2, *start)
    scalars, model = read_scalars(folder), AudioLM.from_checkpoint(exp_dir / "epoch-1.pt")
    last = {
        tag.split("/")[1]: points[-1].value
        for tag, points in scalars.items()
        if tag.startswith("valid_sounds/") and not tag.endswith("/true")
    }
    for heard, is_it in ((num_levels, True), (4 - num_levels, False)):
        meter = make_meter(valid_cuts, codec_dir, heard, seed=42)
        made = meter.measure(model, lambda _: None).made
        assert (made == pytest.approx(last, rel=1e-5)) == is_it


def test_cuts_that_cannot_be_measured_are_counted_and_training_goes_on(long_tokens, tmp_path):
    log = train(long_tokens, tmp_path, *FLAGS, "--measured-cuts", 2, "--prompt-ratio", 0.5)
    assert "could not be measured (ValueError: no validation cut has 1 s left" in log
    assert "Done!" in log
    scalars = read_scalars(tmp_path / "tensorboard")
    failures = [point.value for point in scalars["valid_sounds/failures"]]
    assert failures == list(range(1, len(scalars["train/valid_loss"]) + 1))


def test_a_run_ends_with_its_loaders_processes_whatever_was_measured(long_tokens, tmp_path):
    """What measures must not keep the run alive, which would keep these."""
    flags = ("--measured-cuts", 2, "--prompt-ratio", 0.5, "--num-workers", 2, "--num-epochs", 1)
    command = [sys.executable, str(TRAINER), *arguments(long_tokens, tmp_path, *FLAGS, *flags)]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be measured" in done.stderr


@pytest.mark.parametrize(
    ("error", "ends"),
    [(torch.OutOfMemoryError("no room"), False), (RuntimeError("a mistake of ours"), True)],
)
def test_memory_may_run_out_but_mistakes_are_heard_of(
    long_tokens, tmp_path, monkeypatch, error, ends
):
    def fail(*_):
        raise error

    monkeypatch.setattr(training_measures, "fast_measures", fail)
    if ends:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            train(long_tokens, tmp_path, *FLAGS, "--measured-cuts", 2)
    else:
        assert "(OutOfMemoryError: no room)" in train(
            long_tokens, tmp_path, *FLAGS, "--measured-cuts", 2
        )


def test_rank_0_measures_while_another_waits(long_tokens, tmp_path):
    ranks = ("--world-size", 2, "--master-port", 12397, "--dist-timeout", 60)
    run = start_trainer(long_tokens, tmp_path, *FLAGS, "--measured-cuts", 2, *ranks)
    run.join(120)
    assert run.exitcode == 0
    log, scalars = log_of(tmp_path), read_scalars(tmp_path / "tensorboard")
    assert log.count("Done!") == 2
    assert log.count("Measured 2 continuations") == len(scalars["train/valid_loss"])


def hparams(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def settings_in(events: EventAccumulator) -> dict:
    content = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in values.items()}


def test_the_hparams_tab_has_settings_and_best_figures(measured):
    folder = measured[0] / "tensorboard"
    assert len(list(folder.iterdir())) == 1  # no sub-folder, which would be a run of its own
    events = hparams(folder)
    settings = settings_in(events)
    assert settings["decoder-dim"] == 16
    assert settings["optimizer-name"] == "ScaledAdam"
    assert settings["oom-check"] == "true"
    assert "best-valid-loss" not in settings
    content = events.PluginTagToContent("hparams")
    listed = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    tags = {info.name.tag for info in listed.metric_infos}
    assert {"best/loss", "best/loss_q3", "best/bits_a_second", "best/in_loops"} <= tags
    assert {info.name for info in listed.hparam_infos} == set(settings)
    scalars = read_scalars(folder)
    assert tags <= set(scalars)
    best = read_checkpoint(measured[0] / "best-valid-loss.pt")
    assert scalars["best/loss"][-1].value == pytest.approx(best["best_valid_loss"], rel=1e-6)
    assert scalars["best/step"][-1].value == best["batch_idx_train"]
    assert metadata.SESSION_END_INFO_TAG in content


def test_a_run_that_breaks_off_is_in_the_hparams_tab(long_tokens, tmp_path):
    flags = ("--num-epochs", 50, "--base-lr", 1e30, "--max-skipped-steps", 2, "--measured-cuts", 0)
    train(long_tokens, tmp_path, *FLAGS, *flags, fails=True)
    events = hparams(tmp_path / "tensorboard")
    assert settings_in(events)["base-lr"] == 1e30
    assert metadata.SESSION_END_INFO_TAG not in events.PluginTagToContent("hparams")


def test_settings_are_the_flags_and_no_counters(measured):
    """Of the record and of a checkpoint, and all flags but those that only say where and whence."""
    parser = get_parser()
    flags = {a.dest for a in parser._actions} - {"help"} - NO_SETTINGS
    expected = {name.replace("_", "-") for name in flags} | {"world-size"}
    checkpoint = read_checkpoint(measured[0] / "epoch-1.pt")
    recorded = settings_of(newest_record(measured[0])["parameters"])
    assert set(recorded) == expected
    assert set(settings_of(checkpoint)) == expected
