"""The codec trainer as its users start it: as a command, on sound files, on a CPU."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import codec_options
import codec_passes
import codec_run
import codec_step
import pytest
import torch
import trainer_codec
from codec_runs import (
    arguments,
    train_codec,
    train_codec_on_ranks,
    write_config,
    write_recordings,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_codec import QUANTIZERS, noise, save_codec
from trainer_runs import differences
from transformers import EncodecModel

from valle.codec.balancer import Balancer
from valle.codec.losses import ReconstructionLoss
from valle.data import Codec
from valle.utils.checkpoint import read_checkpoint
from valle.utils.cli import AttributeDict

STEPS = ("--steps-noise", 4, "--steps-joint", 4, "--steps-decoder", 4)
# all that a step may do: a discriminator from the joint phase on, and a balancer throughout
EVERYTHING = (*STEPS, "--adversarial", "joint", "--balancer", "always")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "config.json")


@pytest.fixture(scope="module")
def whole(source, config, tmp_path_factory) -> tuple[Path, str]:
    """A run from scratch through all phases, with a checkpoint of each step, and its log."""
    exp_dir = tmp_path_factory.mktemp("whole")
    flags = (*EVERYTHING, "--save-every-n", 1, "--keep-last-k", 99, "--eval-interval", 6)
    return exp_dir, train_codec(source, exp_dir, "--config", config, *flags)


def test_a_run_leaves_a_codec_that_everybody_opens(whole):
    folder = whole[0] / "codec"
    model, report = EncodecModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    codec = Codec.from_pretrained(folder)
    codes, _ = codec.encode(noise(1.0))
    assert codes.shape == (1, 50, QUANTIZERS)
    assert torch.equal(
        codes[0].T, model.encode(torch.tensor(noise(1.0))[None, None]).audio_codes[0, 0]
    )
    assert not list(whole[0].rglob(".part-*"))
    for layer in model.quantizer.layers:  # as further training wants it
        book = layer.codebook
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)


def test_the_log_tells_of_every_phase(whole):
    log = whole[1]
    assert "recordings: train 3, validation 1, test 1" in log
    for phase in codec_run.PHASES:
        assert f"{phase} step 4/4: " in log
    assert "codes used " in log
    assert "k-means of the codebooks" in log
    assert "step 6 held out: mel_log10 " in log
    assert "Done!" in log


def test_tensorboard_has_losses_use_of_codes_and_sound(whole):
    events = EventAccumulator(str(whole[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for name in ("loss", "mel", "linear", "waveform", "fine", "commit", "rate", "adversarial",
                 "feature", "discriminator", "grad_norm", "lr", "skipped_steps"):  # fmt: skip
        assert f"train/{name}" in tags["scalars"]
    for level in range(1, QUANTIZERS + 1):
        assert {f"usage/q{level}", f"perplexity/q{level}"} <= set(tags["scalars"])
    assert "valid/si_sdr_db" in tags["scalars"]
    assert {"clip1/original", "clip1/codec"} <= set(tags["audio"])


@pytest.mark.parametrize("step", [2, 4, 6, 8, 11])
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(whole, source, config, tmp_path, step):
    """Inside each phase, and at their ends, where the next one begins with k-means."""
    shutil.copy(whole[0] / f"checkpoint-{step}.pt", tmp_path)
    flags = ("--config", config, *EVERYTHING, "--resume", "auto")
    log = train_codec(source, tmp_path, *flags)
    assert f"Going on from {tmp_path}/checkpoint-{step}.pt" in log
    found = differences(whole[0] / "checkpoint-12.pt", tmp_path / "checkpoint-12.pt")
    own = ("elapsed_sec", "phase_sec", "keep_last_k", "eval_interval")
    assert [name for name in found if not name.endswith(own)] == []
    weights = [(folder / "codec/model.safetensors").read_bytes() for folder in (whole[0], tmp_path)]
    assert weights[0] == weights[1]


def test_training_changes_what_it_should_in_each_phase(whole):
    """Each phase moves its parts and leaves the others."""
    states = {n: read_checkpoint(whole[0] / f"checkpoint-{n}.pt")["model"] for n in range(1, 13)}

    def moved(before: int, after: int, start: str) -> bool:
        names = [name for name in states[after] if name.startswith(start)]
        assert names, start
        return any(not torch.equal(states[before][n], states[after][n]) for n in names)

    for first, last in ((1, 4), (5, 8), (9, 12)):  # noise, joint, decoder
        in_decoder, in_noise = first == 9, first == 1
        assert moved(first, last, "codec.decoder")
        assert moved(first, last, "codec.encoder") != in_decoder
        assert moved(first, last, "codec.quantizer") == (first == 5)
        assert moved(first, last, "discriminator") != in_noise


def test_two_ranks_learn_what_one_does(source, config, tmp_path):
    """The same crops, halved: in all phases, with a discriminator, a balancer, and k-means."""
    flags = ("--config", config, *EVERYTHING)
    train_codec(source, tmp_path / "one", *flags)
    train_codec_on_ranks(source, tmp_path / "two", 2, *flags)
    one, two = (read_checkpoint(tmp_path / n / "checkpoint-12.pt") for n in ("one", "two"))
    for name, value in one["model"].items():
        difference = (two["model"][name] - value).norm()
        assert difference <= 2e-3 * value.norm() + 1e-5, name
    for name, sums in one["balancer_norms"].items():  # norms of one sound, sums of two
        assert two["balancer_norms"][name][1] == sums[1]
        assert two["balancer_norms"][name][0] == pytest.approx(2 * sums[0].item(), rel=5e-3), name


def test_a_codec_whose_decoder_alone_was_trained_keeps_its_tokens(source, tmp_path):
    codec = save_codec(tmp_path / "codec")
    flags = ("--init-from", codec, "--train", "decoder", "--steps-decoder", 3)
    for dtype in ("float32", "float16"):
        out = tmp_path / dtype
        train_codec(source, tmp_path / f"exp-{dtype}", *flags, "--save-dtype", dtype,
                    "--out-dir", out)  # fmt: skip
        before, after = Codec.from_pretrained(codec), Codec.from_pretrained(out)
        assert after.info.fingerprint == before.info.fingerprint
        codes, _ = before.encode(noise(1.0))
        assert torch.equal(codes, after.encode(noise(1.0))[0])
        assert not torch.equal(before.decode(codes)[0], after.decode(codes)[0])


def test_fine_tuning_all_of_a_codec_begins_where_it_was(source, tmp_path):
    """Codes and weights stay but for a few small steps, and the tokens are others."""
    codec = save_codec(tmp_path / "codec")
    train_codec(source, tmp_path / "exp", "--init-from", codec, "--steps-joint", 3,
                "--steps-decoder", 0, "--lr", 1e-5, "--save-every-n", 2)  # fmt: skip
    before, after = (Codec.from_pretrained(p) for p in (codec, tmp_path / "exp/codec"))
    assert after.info.fingerprint != before.info.fingerprint
    first = EncodecModel.from_pretrained(codec).state_dict()
    last = read_checkpoint(tmp_path / "exp/checkpoint-2.pt")["model"]
    for name, value in first.items():
        if "original" in name:
            assert 0 < (last[f"codec.{name}"] - value).abs().max() < 1e-4, name
    # the averages go a hundredth of the way to the batch in each step
    for number in range(QUANTIZERS):
        name = f"quantizer.layers.{number}.codebook.embed"
        moved = (last[f"codec.{name}"] - first[name]).norm() / first[name].norm()
        assert 0 < moved < 0.1, name


@pytest.mark.parametrize("part", ["loss", "codec"])
def test_numbers_that_are_not_finite_move_nothing(source, config, tmp_path, monkeypatch, part):
    """Of the step after the second joint one, neither weights nor codebooks."""
    count, forward = [0], ReconstructionLoss.forward

    def spoiled(self, estimate, target):
        count[0] += 1
        terms = forward(self, estimate, target)
        if count[0] == 3:
            terms["waveform"] = terms["waveform"] * (torch.nan if part == "loss" else 1)
            if part == "codec":
                terms = {name: (estimate * torch.inf).sum() for name in terms}
        return terms

    monkeypatch.setattr(ReconstructionLoss, "forward", spoiled)
    flags = ("--config", config, "--steps-noise", 0, "--steps-joint", 4, "--steps-decoder", 0,
             "--save-every-n", 1, "--keep-last-k", 9, "--balancer", "always")  # fmt: skip
    log = train_codec(source, tmp_path, *flags)
    assert "Skipped step 3: loss or gradient was not finite; 1 skipped so far" in log
    two, three, four = (read_checkpoint(tmp_path / f"checkpoint-{n}.pt") for n in (2, 3, 4))
    for name, value in two["model"].items():
        if name.startswith("codec."):
            assert torch.equal(three["model"][name], value), name
    assert any(not torch.equal(four["model"][n], v) for n, v in three["model"].items())
    assert all(v.isfinite().all() for v in four["model"].values())
    assert all(sums.isfinite().all() for sums in four["balancer_norms"].values())
    assert four["num_skipped"] == 1


def test_a_discriminator_that_is_not_finite_is_not_left_unsaid(
    source, config, tmp_path, monkeypatch
):
    original = codec_step.discriminator_loss
    monkeypatch.setattr(codec_step, "discriminator_loss", lambda *a: original(*a) * torch.nan)
    log = train_codec(source, tmp_path, "--config", config, *EVERYTHING, "--max-skipped-steps", 3,
                      fails=True)  # fmt: skip
    assert "Skipped step 5: loss or gradient was not finite; 1 skipped so far" in log
    assert "not finite in 3 steps in a row" in log


@pytest.mark.parametrize("begin", ["joint", "decoder"])
def test_the_discriminator_learns_alone_at_first(source, tmp_path, begin):
    """In the first phase that there is, whatever phase it was to begin with."""
    codec = save_codec(tmp_path / "codec")
    log = train_codec(source, tmp_path / "exp", "--init-from", codec, "--train", "decoder",
                      "--steps-decoder", 4, "--log-interval", 1, "--adversarial", begin,
                      "--disc-warmup", 2)  # fmt: skip
    lines = [line for line in log.splitlines() if "decoder step " in line and "/4: " in line]
    assert [" adversarial " in line for line in lines] == [False, False, True, True]
    assert all(" discriminator " in line for line in lines)


def test_a_run_that_only_skips_ends(source, config, tmp_path, monkeypatch):
    forward = ReconstructionLoss.forward

    def nan(self, estimate, target):
        return {n: t * torch.nan for n, t in forward(self, estimate, target).items()}

    monkeypatch.setattr(ReconstructionLoss, "forward", nan)
    log = train_codec(source, tmp_path, "--config", config, *STEPS, "--max-skipped-steps", 3,
                      fails=True)  # fmt: skip
    assert "not finite in 3 steps in a row (--max-skipped-steps)" in log
    assert "Lower --lr" in log


def test_a_signal_saves_and_ends_and_the_run_goes_on(source, config, tmp_path, monkeypatch):
    original = codec_step.judge
    count = [0]

    def judge(*args):
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(codec_step, "judge", judge)
    flags = ("--config", config, *STEPS)
    log = train_codec(source, tmp_path, *flags)
    assert "Stopped after step 3, as SIGTERM asked" in log
    assert read_checkpoint(tmp_path / "checkpoint-3.pt")["step"] == 3
    assert not (tmp_path / "codec").exists()  # in the noise phase all codes would be zero
    log = train_codec(source, tmp_path, *flags, "--resume", "auto")
    assert "Done!" in log
    assert (tmp_path / "checkpoint-12.pt").exists()
    assert (tmp_path / "codec/model.safetensors").exists()


def test_a_time_limit_cuts_all_phases(source, config, tmp_path):
    many = ("--steps-noise", 10**6, "--steps-joint", 10**6, "--steps-decoder", 10**6)
    log = train_codec(source, tmp_path, "--config", config, *many, "--max-minutes", 0.05,
                      "--adversarial", "none")  # fmt: skip
    assert "Done!" in log
    for phase in codec_run.PHASES:
        assert f"{phase} step " in log


def test_half_precision_is_for_convolutions_and_not_for_codes(
    source, config, tmp_path, monkeypatch
):
    seen = {"convolutions": set(), "latents of codes": set(), "sound that is judged": set()}
    convolve, quantize, judge = (
        torch.nn.functional.conv1d, codec_run.ResidualTrainer.quantize, codec_step.judge
    )  # fmt: skip

    def watch(what, function, place):
        def watched(*args, **options):
            found = function(*args, **options)
            seen[what].add((args[place] if place >= 0 else found).dtype)
            return found

        return watched

    monkeypatch.setattr("torch.nn.functional.conv1d", watch("convolutions", convolve, -1))
    monkeypatch.setattr(
        codec_run.ResidualTrainer, "quantize", watch("latents of codes", quantize, 1)
    )
    monkeypatch.setattr(codec_step, "judge", watch("sound that is judged", judge, 2))
    flags = ("--config", config, *EVERYTHING, "--dtype", "bfloat16")
    train_codec(source, tmp_path, *flags)
    assert torch.bfloat16 in seen["convolutions"]
    assert seen["latents of codes"] == seen["sound that is judged"] == {torch.float32}
    state = read_checkpoint(tmp_path / "checkpoint-12.pt")
    assert {v.dtype for n, v in state["model"].items()} == {torch.float32}
    assert all(v.isfinite().all() for v in state["model"].values())


def test_recordings_and_splits_of_a_prepared_folder(source, config, tmp_path):
    rows = [{"id": str(n), "path": str(source / f"{n}.wav"), "split": "train"} for n in range(3)]
    rows[2]["split"] = "validation"
    rows.append({"id": "x", "path": "gone.wav", "skipped": "damaged"})
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "recordings.jsonl").write_text("\n".join(lines) + "\n")
    args = arguments(source, tmp_path / "exp", "--config", config, *STEPS)
    args[:2] = ["--manifest-dir", str(tmp_path)]
    trainer_codec.main(args)
    (log,) = (tmp_path / "exp/log").glob("log-train*")
    assert "recordings: train 2, validation 1, test 0" in log.read_text()


def test_another_runs_checkpoint_is_not_gone_on_from(whole, source, config, tmp_path):
    shutil.copy(whole[0] / "checkpoint-4.pt", tmp_path)
    log = train_codec(source, tmp_path, "--config", config, *EVERYTHING, "--resume", "auto",
                      "--batch-size", 2, fails=True)  # fmt: skip
    assert "was made with other settings (--batch-size 4 there, 2 here)" in log


def test_a_new_run_does_not_begin_where_another_was(whole, source, config, tmp_path):
    shutil.copy(whole[0] / "checkpoint-4.pt", tmp_path)
    log = train_codec(source, tmp_path, "--config", config, *EVERYTHING, fails=True)
    assert "holds checkpoint-4.pt of another run: give --resume auto to go on with it" in log


def test_averages_begin_anew_in_each_phase():
    """Else a short last phase would be a fifth of what it began with."""
    params = AttributeDict(weight_average=0.999, step=10_000, phase_step=1)
    assert codec_passes.averaging(SimpleNamespace(params=params)) > 0.8
    params.phase_step = 10_000
    assert codec_passes.averaging(SimpleNamespace(params=params)) == pytest.approx(0.001)


def test_a_damaged_checkpoint_is_left_out(whole, source, config, tmp_path):
    shutil.copy(whole[0] / "checkpoint-3.pt", tmp_path)
    (tmp_path / "checkpoint-9.pt").write_bytes(b"cut short")
    log = train_codec(source, tmp_path, "--config", config, *EVERYTHING, "--resume", "auto")
    assert "leaves out a damaged file" in log
    assert "checkpoint-3.pt, step 3" in log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --init-from (fine-tune) or --config (from scratch)"),
        (["--config", "c", "--init-from", "f"], "give either --init-from"),
        (["--config", "c", "--train", "decoder"], "--train decoder needs --init-from"),
        (["--init-from", "f", "--steps-noise", 5], "--steps-noise 5 is for --config"),
        (["--init-from", "f", "--train", "decoder", "--steps-joint", 5], "changes tokens"),
        (["--config", "c", "--batch-size", 0], "--batch-size is 0, must be > 0"),
        (["--config", "c", "--max-minutes", -1], "--max-minutes is -1.0, must be >= 0"),
        (["--config", "c", "--quantizer-drop", 2], "--quantizer-drop 2.0: 0 to 1 expected"),
        (["--config", "c", "--loss-weights", "mel"], "--loss-weights mel: expected NAME=X"),
        (["--config", "c", "--loss-weights", "mel=-1"], "--loss-weights mel=-1: expected NAME=X"),
        (["--config", "c", "--loss-weights", "loud=1"], "NAME one of mel, linear, waveform, fine"),
        (["--config", "c", "--floor-db", 0], "--floor-db is 0, must be < 0"),
        (["--config", "c", "--world-size", 3, "--batch-size", 4], "a multiple of 3"),
        (["--config", "c", "--world-size", 2, "--max-minutes", 1], "--max-minutes is for one"),
        (["--config", "c", "--steps-noise", 0, "--steps-joint", 0, "--steps-decoder", 0], "all of"),
        (["--config", "no-such.json"], "no configuration no-such.json"),
        (["--init-from", "no-such-folder"], "cannot load the codec 'no-such-folder'"),
    ],
)
def test_flags_that_cannot_work_are_refused(source, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert message in train_codec(source, tmp_path, *flags, fails=True)


def test_codecs_of_other_families_are_not_trained(source, tmp_path):
    from tiny_families import save_family

    dac = save_family(tmp_path / "dac", "dac")
    log = train_codec(source, tmp_path / "exp", "--init-from", dac, fails=True)
    assert f"--init-from {dac} is of kind 'dac', expected 'encodec'" in log


def test_fewer_latents_than_codes_are_refused(source, config, tmp_path):
    log = train_codec(source, tmp_path, "--config", config, "--kmeans-latents", 15, fails=True)
    assert "--kmeans-latents 15 for 16 codes: give at least 20 a code, 320" in log


def test_clips_too_short_to_be_scored_are_refused_at_the_start(source, config, tmp_path):
    log = train_codec(source, tmp_path, "--config", config, "--clip-sec", 0.1, fails=True)
    assert "clips of 800 samples; at least 4096 are needed, 0.51 s" in log


def test_recordings_without_a_held_out_split_are_refused(source, config, tmp_path):
    log = train_codec(source, tmp_path, "--config", config, "--valid-fraction", 0,
                      "--test-fraction", 0, fails=True)  # fmt: skip
    assert "no recording in validation or test" in log


def test_the_floor_reaches_the_losses(source, config, tmp_path):
    """Of the first step, whose sound is the same: more counts, the deeper the floor."""
    flags = ["--config", config, "--steps-noise", 1, "--steps-joint", 0, "--steps-decoder", 0]
    flags += ["--log-interval", 1, "--adversarial", "none"]
    found = {}
    for floor in (-20, -94):
        log = train_codec(source, tmp_path / str(floor), *flags, "--floor-db", floor)
        found[floor] = float(re.search(r"noise step 1/1: .* mel ([\d.]+)", log)[1])
    assert found[-94] > 1.5 * found[-20]


def test_weights_over_the_defaults():
    weights = codec_options.read_weights(["mel=2", "feature=0"])
    assert weights == codec_options.LOSS_WEIGHTS | {"mel": 2.0, "feature": 0.0}
    assert Balancer(weights).weights == weights


def test_schedules_end_by_steps_or_by_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(trainer_codec.time, "monotonic", lambda: now[0])
    progress = trainer_codec.Progress(steps=100, seconds=50)
    assert progress.share(10) == pytest.approx(0.1)
    now[0] = 25.0
    assert progress.share(10) == pytest.approx(0.5)
    assert trainer_codec.Progress(100, 50, before_sec=20).share(0) == pytest.approx(0.4)
    now[0] = 50.0
    assert progress.share(10) >= 1
    assert trainer_codec.cosine(0) == pytest.approx(1)
    assert trainer_codec.cosine(1.2) == pytest.approx(trainer_codec.LAST_LR_SHARE)
