"""The trainer as its users start it: as a command, on token cuts, on a CPU."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import write_token_cuts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import same, train, weights

from valle.models import AudioLM
from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import read_scalars


@pytest.fixture(scope="module")
def both(token_dir, tmp_path_factory) -> tuple[Path, str]:
    """Two epochs of stage 0: the run's folder and its log."""
    exp_dir = tmp_path_factory.mktemp("both")
    log = train(token_dir, exp_dir, "--num-epochs", 2, "--num-samples", 1, "--average-period", 2)
    return exp_dir, log


def test_a_run_leaves_the_promised_files(both):
    exp_dir, _ = both
    names = {path.name for path in exp_dir.iterdir() if not path.name.startswith("run-")}
    assert names == {
        "epoch-1.pt",
        "epoch-2.pt",
        "best-valid-loss.pt",
        "best-train-loss.pt",
        "model.txt",
        "log",
        "tensorboard",
    }
    (record,) = exp_dir.glob("run-*.json")
    record = json.loads(record.read_text())
    assert record["data"]["train"]["cuts"] == 12
    assert record["parameters"]["decoder_dim"] == 16


def test_checkpoints_describe_themselves(both, codec_dir):
    checkpoint = torch.load(both[0] / "best-valid-loss.pt")  # weights_only is torch's default
    model = AudioLM.from_checkpoint(both[0] / "best-valid-loss.pt")
    assert model.config.num_audio_tokens == 16
    assert model.config.num_quantizers == 3
    assert checkpoint["decoder_dim"] == 16
    assert checkpoint["codec"]["name"] == str(codec_dir)
    assert list(checkpoint)[:5] == ["model", "optimizer", "scheduler", "grad_scaler", "sampler"]
    assert {name.split(".")[0] for name in checkpoint["model"]} == {"ar", "nar"}
    assert checkpoint["model_avg"].keys() == checkpoint["model"].keys()


def test_log_lines_are_those_of_icefall(both):
    log = both[1]
    assert "kept 12 of 12 cuts between 0 and 20 s" in log
    assert "Epoch 1, batch 1, train_loss[loss=" in log
    assert "tot_loss[loss=" in log
    assert "Epoch 2, validation: loss=" in log
    assert ", ArTop10Accuracy=" in log
    assert ", NarTop10Accuracy=" in log
    assert "batch size: " in log
    assert "Done!" in log


def test_tensorboard_has_the_known_tags_and_sound(both):
    events = EventAccumulator(str(both[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    for prefix in ("current_", "tot_", "valid_"):
        for name in ("loss", "ArTop10Accuracy", "NarTop10Accuracy", "loss_q1", "accuracy_q1"):
            assert f"train/{prefix}{name}" in tags["scalars"]
    for name in (
        "train/epoch",
        "train/learning_rate",
        "train/grad_norm",
        "train/frames_per_second",
        "train/memory_mib",
        "train/valid_perplexity_q3",
    ):
        assert name in tags["scalars"]
    assert set(tags["audio"]) == {f"sample_1/{part}" for part in ("prompt", "true", "generated")}
    assert tags["images"] == ["sample_1/spectrograms"]


def test_training_lowers_the_loss(token_dir, tmp_path):
    train(token_dir, tmp_path, "--num-epochs", 12, "--sample-epochs", 0)
    first, last = (torch.load(tmp_path / f"epoch-{n}.pt")["train_loss"] for n in (1, 12))
    assert last < 0.8 * first


def test_resuming_at_an_epoch_equals_the_unbroken_run(both, token_dir, tmp_path):
    flags = ("--num-samples", 1, "--average-period", 2)
    train(token_dir, tmp_path, "--num-epochs", 1, *flags)
    train(token_dir, tmp_path, "--num-epochs", 2, "--start-epoch", 2, *flags)
    assert same(weights(tmp_path / "epoch-2.pt"), weights(both[0] / "epoch-2.pt"))
    assert (
        read_checkpoint(tmp_path / "epoch-2.pt")["train_loss"]
        == read_checkpoint(both[0] / "epoch-2.pt")["train_loss"]
    )


def test_a_cosine_resumed_is_the_same_cosine(token_dir, tmp_path):
    flags = ("--optimizer-name", "AdamW", "--num-epochs", 4, "--sample-epochs", 0)
    whole = train(token_dir, tmp_path, *flags)
    rest = train(token_dir, tmp_path, *flags, "--start-epoch", 3)
    (total,) = re.findall(r"Cosine over (\d+) steps", whole)
    assert f"Cosine over {total} steps" in rest
    last = [re.findall(r"lr: (\S+)", log)[-1] for log in (whole, rest)]
    assert last[0] == last[1]


def test_resuming_inside_an_epoch_equals_the_unbroken_run(both, token_dir, tmp_path):
    flags = ("--num-samples", 1, "--average-period", 2, "--num-epochs", 2)
    train(token_dir, tmp_path, "--save-every-n", 1, "--keep-last-k", 2, *flags)
    kept = sorted(tmp_path.glob("checkpoint-*.pt"))
    assert len(kept) == 2
    step = min(int(path.stem.split("-")[1]) for path in kept)
    (tmp_path / "epoch-2.pt").unlink()
    log = train(token_dir, tmp_path, "--start-batch", step, *flags)
    assert f"checkpoint-{step}.pt, step {step}" in log
    assert same(weights(tmp_path / "epoch-2.pt"), weights(both[0] / "epoch-2.pt"))


def test_resuming_at_the_last_step_of_an_epoch(both, token_dir, tmp_path):
    flags = ("--num-samples", 1, "--average-period", 2)
    train(token_dir, tmp_path, "--save-every-n", 1, "--num-epochs", 1, *flags)
    last = max(int(path.stem.split("-")[1]) for path in tmp_path.glob("checkpoint-*.pt"))
    (tmp_path / "epoch-1.pt").unlink()
    train(token_dir, tmp_path, "--start-batch", last, "--num-epochs", 2, *flags)
    assert same(weights(tmp_path / "epoch-2.pt"), weights(both[0] / "epoch-2.pt"))


def test_a_stage_counts_beyond_the_checkpoints_that_are_there(token_dir, tmp_path):
    train(token_dir, tmp_path, "--train-stage", 1, "--num-epochs", 2, "--save-every-n", 1)
    (tmp_path / "epoch-2.pt").unlink()  # killed before its end
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*.pt")}
    flags = ("--save-every-n", 1, "--keep-last-k", 1, "--sample-epochs", 0)
    train(token_dir, tmp_path, "--train-stage", 2, "--start-epoch", 2, "--num-epochs", 2, *flags)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == len(before) + 1


def test_ar_then_nar(token_dir, tmp_path):
    """Stage 2 reads the AR half of the epoch before and overwrites nothing."""
    train(token_dir, tmp_path, "--train-stage", 1, "--num-epochs", 2, "--save-every-n", 1)
    before = {path: weights(path) for path in tmp_path.glob("*.pt")}
    log = train(
        token_dir, tmp_path, "--train-stage", 2, "--start-epoch", 3, "--num-epochs", 4,
        "--save-every-n", 1, "--keep-last-k", 1,
    )  # fmt: skip
    assert f"AR half loaded from {tmp_path}/epoch-2.pt" in log
    assert all(same(weights(path), old) for path, old in before.items() if "best" not in path.name)
    ar, nar = weights(tmp_path / "epoch-2.pt"), weights(tmp_path / "epoch-4.pt")
    assert same(ar, nar, "ar.")
    assert not same(ar, nar, "nar.")
    kept_best = weights(tmp_path / "best-valid-loss-stage1.pt")
    assert same(kept_best, before[tmp_path / "best-valid-loss.pt"])
    assert same(ar, weights(tmp_path / "best-valid-loss.pt"), "ar.") or same(
        kept_best, weights(tmp_path / "best-valid-loss.pt"), "ar."
    )
    assert (tmp_path / "tensorboard_stage1").is_dir()
    assert (tmp_path / "tensorboard_stage2").is_dir()

    log = train(
        token_dir, tmp_path / "other", "--train-stage", 2, "--num-epochs", 1,
        "--ar-checkpoint", tmp_path / "epoch-1.pt",
    )  # fmt: skip
    assert f"AR half loaded from {tmp_path}/epoch-1.pt" in log
    assert same(weights(tmp_path / "epoch-1.pt"), weights(tmp_path / "other/epoch-1.pt"), "ar.")

    elsewhere = ("--train-stage", 2, "--ar-checkpoint", tmp_path / "epoch-1.pt")
    log = train(token_dir, tmp_path / "other", *elsewhere, "--start-epoch", 2, "--num-epochs", 2)
    assert "--ar-checkpoint is not read, as the run goes on" in log
    assert "other/epoch-1.pt, step" in log

    log = train(token_dir, tmp_path, "--train-stage", 2, "--num-epochs", 1, fails=True)
    assert "epoch-1.pt belongs to another training stage" in log


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer-name", "AdamW", "--base-lr", 1e-3),
        ("--dtype", "bfloat16"),
        ("--dtype", "float16"),
        ("--bucketing-sampler", "false", "--shuffle", "false", "--prompt-ratio", 0.2),
        ("--add-prenet", "true", "--norm-first", "false", "--prepend-bos", "true"),
        ("--prepend-bos", "true", "--prompt-ratio", 0),
        ("--scale-factor", 2, "--inf-check", "true", "--tensorboard", "false"),
    ],
)
def test_flags_train(token_dir, tmp_path, flags):
    log = train(token_dir, tmp_path, "--num-epochs", 1, "--sample-epochs", 0, *flags)
    assert "Done!" in log


def test_accumulated_batches_equal_one_large_batch(token_dir, tmp_path):
    """Twice 6 s a step, or 12 s at once: the same cuts, the same gradient, the same weights."""
    common = ("--bucketing-sampler", "false", "--shuffle", "false", "--dropout", 0,
              "--train-stage", 1, "--num-epochs", 1, "--sample-epochs", 0)  # fmt: skip
    train(token_dir, tmp_path / "one", "--max-duration", 1000, *common)
    train(token_dir, tmp_path / "many", "--accumulate-grad-steps", 1000, *common)
    one, many = (weights(tmp_path / name / "epoch-1.pt") for name in ("one", "many"))
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, atol=1e-5, rtol=1e-3)


def test_validation_tokens_of_another_codec_are_refused(tmp_path, codec_info):
    write_token_cuts(tmp_path, "train", 6, codec_info)
    other = dataclasses.replace(codec_info, fingerprint="other")
    write_token_cuts(tmp_path, "validation", 6, other)
    log = train(tmp_path, tmp_path / "exp", fails=True)
    assert "the validation cuts: codec" in log


def test_embeddings_start_from_the_codec(token_dir, codec_dir, tmp_path):
    flags = ("--init-embeddings-from-codec", codec_dir, "--num-epochs", 1, "--sample-epochs", 0)
    log = train(token_dir, tmp_path, *flags)
    assert f"start from the codebooks of {codec_dir}" in log


def test_tokens_from_elsewhere_train_with_a_warning(tmp_path, codec_info):
    for split in ("train", "validation"):
        write_token_cuts(tmp_path, split, 6, codec_info, record=False)
    flags = ("--num-quantizers", 3, "--num-audio-tokens", 16, "--num-epochs", 1)
    log = train(tmp_path, tmp_path / "exp", *flags)
    assert "does not record which codec" in log
    assert "No audio samples in tensorboard: the manifest names no codec" in log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-quantizers", 4), "--num-quantizers 4, but the tokens in"),
        (("--num-audio-tokens", 9), "--num-audio-tokens 9, but the tokens in"),
        (("--filter-min-duration", 50), "none of 12 cuts lasts between 50 and 20 s"),
        (("--start-epoch", 5), "no checkpoint"),
        (("--start-epoch", 30), "--num-epochs 20 is the number of the last epoch"),
        (("--log-interval", 0), "--log-interval must be 1 or more, got 0"),
        (("--nhead", 3), "d_model must be even and divisible by nhead, got 16 and 3"),
        (("--manifest-dir", "nowhere"), "in nowhere (found none)"),
        (("--prompt-ratio", 1.5), "--prompt-ratio 1.5 must be above 0 and below 1"),
        (("--prompt-ratio", 0), "needs --prepend-bos true"),
        (("--base-lr", 1e30, "--num-epochs", 50), "not finite in 10 steps in a row"),
    ],
)
def test_mistakes_are_explained(token_dir, tmp_path, flags, message):
    log = train(token_dir, tmp_path, "--sample-epochs", 0, *flags, fails=True)
    assert message in log


def test_another_codec_is_refused(both, tmp_path, codec_info):
    other = dataclasses.replace(codec_info, fingerprint="other")
    for split in ("train", "validation"):
        write_token_cuts(tmp_path, split, 6, other)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/epoch-1.pt").write_bytes((both[0] / "epoch-1.pt").read_bytes())
    log = train(tmp_path, tmp_path / "exp", "--start-epoch", 2, fails=True)
    assert "they differ in fingerprint" in log


def test_prompts_are_learned_and_not_validated(token_dir, tmp_path):
    """What is logged and validated is the loss of targets, with prompts scored or not."""
    flags = ("--train-stage", 1, "--num-epochs", 1, "--sample-epochs", 0, "--dropout", 0)
    for name in ("true", "false"):
        train(token_dir, tmp_path / name, *flags, "--score-prompts", name)
    learned = [weights(tmp_path / name / "epoch-1.pt") for name in ("true", "false")]
    assert not same(*learned)
    scored = [read_scalars(tmp_path / name / "tensorboard_stage1") for name in ("true", "false")]
    first = [scalars["train/current_loss_q1"][0].value for scalars in scored]
    assert first[0] == pytest.approx(first[1], rel=1e-6)  # of the same first weights
    for scalars in scored:
        for loss, q1 in zip(
            scalars["train/valid_loss"], scalars["train/valid_loss_q1"], strict=True
        ):
            assert loss.value == pytest.approx(q1.value, rel=2e-2)  # EOS counts in the second alone
