"""The trainer with a VALL-E: of MIDI and of text, as its users start it, on a CPU."""

from pathlib import Path

import pytest
import torch
import trainer
from conftest import write_token_cuts
from continued_cuts import TOP_K, continue_cuts, first_parts, prompt_sec
from tiny_conditions import write_conditioned
from trainer_runs import differences, run_here, same, train, train_on_ranks, weights

from valle.data import TokenDataset, load_cuts
from valle.data.text import SymbolTable
from valle.models import VALLE, VALLEConfig, load_model
from valle.utils.checkpoint import read_checkpoint
from valle.utils.events import read_scalars

VALLE_FLAGS = ("--model-name", "valle", "--sample-epochs", 0)


@pytest.fixture(scope="module")
def carried(tmp_path_factory, codec_info) -> dict[str, Path]:
    """Folders of manifests by what their cuts carry."""
    folders = {}
    for condition in ("midi", "text"):
        folders[condition] = tmp_path_factory.mktemp(condition)
        for split in ("train", "validation"):
            write_conditioned(folders[condition], condition, split, codec=codec_info)
    return folders


@pytest.fixture(scope="module")
def unbroken(carried, tmp_path_factory) -> dict[str, Path]:
    """Runs of two epochs, every step saved."""
    folders = {}
    for condition, folder in carried.items():
        folders[condition] = tmp_path_factory.mktemp(f"run-{condition}")
        flags = ("--num-epochs", 2, "--save-every-n", 1, "--average-period", 2)
        train(folder, folders[condition], *VALLE_FLAGS, *flags)
    return folders


def restarted(path: Path, folder: Path) -> Path:
    """A folder that holds one checkpoint of another run."""
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("condition", ["midi", "text"])
def test_checkpoints_describe_themselves(unbroken, condition, codec_info):
    checkpoint = torch.load(unbroken[condition] / "best-valid-loss.pt")
    model = load_model(unbroken[condition] / "best-valid-loss.pt")
    assert isinstance(model, VALLE)
    assert model.config.condition == checkpoint["condition"] == condition
    assert model.config.frame_rate == codec_info.frame_rate
    assert model.config.num_audio_tokens == codec_info.codebook_size
    if condition == "text":
        assert checkpoint["text_symbols"][:4] == ["<pad>", "<bos>", "<eos>", "_"]
        assert model.config.num_text_tokens == len(checkpoint["text_symbols"])
        assert checkpoint["text_extractor"] == "characters"
        assert checkpoint["language"] is None
    else:
        assert "text_symbols" not in checkpoint


@pytest.mark.parametrize("condition", ["midi", "text"])
@pytest.mark.parametrize("name", ["epoch-1.pt", "checkpoint-2.pt"])
def test_a_run_taken_up_equals_the_unbroken_run(carried, unbroken, tmp_path, condition, name):
    """At an epoch's end and inside an epoch: prefixes and NAR stages are drawn as before."""
    exp_dir = restarted(unbroken[condition] / name, tmp_path / "exp")
    flags = ("--num-epochs", 2, "--save-every-n", 1, "--average-period", 2, "--resume", "auto")
    assert f"Going on from {exp_dir / name}" in (
        train(carried[condition], exp_dir, *VALLE_FLAGS, *flags)
    )
    assert differences(unbroken[condition] / "epoch-2.pt", exp_dir / "epoch-2.pt") == []


def test_training_lowers_the_loss(carried, tmp_path):
    train(carried["midi"], tmp_path, *VALLE_FLAGS, "--num-epochs", 12)
    first, last = (torch.load(tmp_path / f"epoch-{n}.pt")["train_loss"] for n in (1, 12))
    assert last < 0.95 * first


@pytest.mark.parametrize(
    "flags",
    [
        ("--prefix-mode", 0),
        ("--prefix-mode", 4),
        ("--prefix-mode", 4, "--condition", "text", "--num-workers", 1),
        ("--model-name", "VALL-E", "--condition", "text", "--prefix-mode", 0),
        ("--optimizer-name", "AdamW", "--base-lr", 1e-3, "--all-nar-stages", "true"),
        ("--dtype", "bfloat16", "--prepend-bos", "true"),
    ],
)
def test_flags_train(carried, tmp_path, flags):
    folder = carried["text" if "text" in flags else "midi"]
    assert "Done!" in train(folder, tmp_path, *VALLE_FLAGS, "--num-epochs", 1, *flags)
    scored = read_scalars(tmp_path / "tensorboard")["train/valid_loss"]
    again = tmp_path / "again"
    train(folder, again, *VALLE_FLAGS, "--num-epochs", 1, *flags)
    twice = read_scalars(again / "tensorboard")["train/valid_loss"]
    assert [point.value for point in scored] == [point.value for point in twice]


def test_ar_then_nar(carried, tmp_path):
    train(carried["midi"], tmp_path, *VALLE_FLAGS, "--train-stage", 1, "--num-epochs", 1)
    log = train(
        carried["midi"], tmp_path, *VALLE_FLAGS, "--train-stage", 2, "--start-epoch", 2,
        "--num-epochs", 2,
    )  # fmt: skip
    assert f"AR half loaded from {tmp_path}/epoch-1.pt" in log
    ar, nar = (weights(tmp_path / f"epoch-{n}.pt") for n in (1, 2))
    assert same(ar, nar, "ar.")
    assert not same(ar, nar, "nar.")


def test_validation_does_not_depend_on_its_batches(carried, unbroken, tmp_path):
    """Nor on what was drawn before: a model that is scored again has the same loss."""
    start = ("--init-from", unbroken["midi"] / "epoch-2.pt", "--base-lr", 1e-30, "--num-epochs", 1)
    values = []
    for max_duration in (6, 2):
        exp_dir = tmp_path / str(max_duration)
        flags = ("--max-duration", max_duration, "--seed", max_duration)
        train(carried["midi"], exp_dir, *VALLE_FLAGS, *start, *flags)
        values.append(read_scalars(exp_dir / "tensorboard")["train/valid_loss"][-1].value)
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("prefix_mode", [1, 4])
def test_a_batch_too_large_is_split(carried, tmp_path, monkeypatch, prefix_mode):
    """In halves it teaches what it teaches at once."""
    flags = ("--num-epochs", 1, "--dropout", 0, "--prefix-mode", prefix_mode,
             "--train-stage", 1, "--on-oom", "split")  # fmt: skip
    train(carried["midi"], tmp_path / "roomy", *VALLE_FLAGS, *flags)
    forward = VALLE.forward

    def tight(self, x, *args, **kwargs):
        if self.training and len(x) > 1:
            raise torch.OutOfMemoryError("no room for two rows")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(VALLE, "forward", tight)
    log = train(carried["midi"], tmp_path / "tight", *VALLE_FLAGS, *flags)
    assert "The batch is split in halves" in log
    one, other = (weights(tmp_path / name / "epoch-1.pt") for name in ("roomy", "tight"))
    for name, value in one.items():
        assert (other[name] - value).norm() <= 2e-3 * value.norm() + 1e-6, name


def test_trying_the_largest_batches_changes_nothing(carried, unbroken, tmp_path, monkeypatch):
    """What a run on a GPU begins with."""
    start_epoch = trainer.start_epoch

    def try_first(run, epoch):
        trainer.scan_pessimistic_batches(run)
        start_epoch(run, epoch)

    monkeypatch.setattr(trainer, "start_epoch", try_first)
    log = train(carried["midi"], tmp_path, *VALLE_FLAGS, "--num-epochs", 1)
    assert "Largest batches, forward and backward" in log
    assert same(weights(tmp_path / "epoch-1.pt"), weights(unbroken["midi"] / "epoch-1.pt"))


def test_two_ranks_train_alike_with_whole_models_and_with_shares(carried, tmp_path):
    """One rank has a validation batch more than the other, which a sharded model must wait for."""
    flags = (*VALLE_FLAGS, "--tensorboard", "false", "--num-epochs", 1, "--prefix-mode", 4,
             "--optimizer-name", "AdamW", "--max-duration", 5, "--warmup-steps", 1)  # fmt: skip
    for fsdp in ("false", "true"):
        train_on_ranks(carried["midi"], tmp_path / fsdp, 2, *flags, "--fsdp", fsdp)
    one, other = (read_checkpoint(tmp_path / fsdp / "epoch-1.pt") for fsdp in ("false", "true"))
    assert one["batch_idx_train"] > 1
    assert one["best_valid_loss"] == pytest.approx(other["best_valid_loss"], rel=1e-5)
    for name, value in one["model"].items():
        assert (other["model"][name] - value).norm() <= 1e-3 * value.norm() + 1e-6, name


def test_what_is_made_of_validation_cuts_can_be_heard_and_measured(carried, tmp_path):
    """And changes nothing in training."""
    flags = ("--model-name", "valle", "--num-epochs", 1, "--num-samples", 1)
    log = train(carried["midi"], tmp_path / "a", *flags, "--measured-cuts", 2)
    assert "Measured 2 continuations in" in log
    scalars = read_scalars(tmp_path / "a/tensorboard")
    assert "valid_sounds/chroma_similarity" in scalars
    assert "could not be measured" not in log
    train(carried["midi"], tmp_path / "b", *flags, "--measured-cuts", 0)
    assert differences(tmp_path / "a/epoch-1.pt", tmp_path / "b/epoch-1.pt") == [".measured_cuts"]


@pytest.mark.parametrize("condition", ["midi", "text"])
def test_cuts_are_continued_by_what_they_carry(carried, unbroken, condition):
    """From their first half, of 3 s at most: prompts untouched, rows those of the model alone."""
    model = load_model(unbroken[condition] / "epoch-2.pt").train()
    cuts = list(load_cuts(carried[condition] / "cuts_validation.jsonl.gz"))[:2]
    table = None
    if condition == "text":
        table = SymbolTable.read(carried[condition] / "unique_text_tokens.k2symbols")
    dataset = TokenDataset(condition=condition, symbols=table)
    continued = continue_cuts(
        model, cuts, 0.9, seed=1, load=dataset.__getitem__, ignore_eos=True
    )  # fmt: skip
    assert continued.prompt_lens.tolist() == [55, 55]  # of 2.2 s each, at 50 frames a second
    assert torch.equal(continued.made[:, :55], continued.true[:, :55])
    assert continued.made_lens.tolist() == [110, 110]
    assert model.training
    batch = dataset[cuts]
    x, x_lens = (batch[f"{condition}_tokens{what}"] for what in ("", "_lens"))
    new = model.inference(
        x, x_lens, continued.true[:, :55], max_new_tokens=55, ignore_eos=True, top_k=TOP_K,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert torch.equal(continued.made[:, 55:], new)


def test_long_cuts_are_continued_from_three_seconds():
    lens = torch.tensor([401, 300, 299, 101])
    codes = torch.arange(401).view(1, -1, 1).expand(4, -1, 3)
    config = VALLEConfig(frame_rate=50.0)
    assert [prompt_sec(config, sec, 0.9) for sec in (8.0, 6.0, 2.0)] == [3.0, 3.0, 1.0]
    prompts, prompt_lens = first_parts(config, codes, lens, 0.9)
    assert prompt_lens.tolist() == [150, 150, 149, 50]
    assert torch.equal(prompts, codes[:, :150])


def trains(folder: Path, exp_dir: Path, *flags: object) -> str:
    return train(folder, exp_dir, *VALLE_FLAGS, *flags, fails=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt-ratio", 0.3), "--prompt-ratio 0.3 is for --model-name audio-lm, got valle"),
        (("--infill-prob", 0.3), "--infill-prob 0.3 is for --model-name audio-lm"),
        (("--ahead-frames", 25), "--ahead-frames 25 is for --model-name audio-lm"),
        (("--score-prompts", "true"), "--score-prompts True is for --model-name audio-lm"),
        (("--condition", "text"), "--condition text, but the cuts in"),
    ],
)
def test_mistakes_are_explained(carried, tmp_path, flags, message):
    assert message in trains(carried["midi"], tmp_path, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--condition", "midi"), "--condition midi is for --model-name valle, got audio-lm"),
        (("--prefix-mode", 0), "--prefix-mode 0 is for --model-name valle"),
        (("--text-tokens", "table"), "--text-tokens table is for --model-name valle"),
    ],
)
def test_flags_of_valle_are_no_use_to_an_audio_lm(carried, tmp_path, flags, message):
    assert message in train(carried["midi"], tmp_path, *flags, fails=True)


def test_cuts_without_what_the_model_reads_are_refused(carried, token_dir, tmp_path, codec_info):
    assert "carry neither text nor MIDI" in trains(token_dir, tmp_path / "exp")
    mixed = tmp_path / "mixed"
    write_conditioned(mixed, "midi", "train", codec=codec_info)
    write_token_cuts(mixed, "validation", 4, codec_info)
    assert "carry midi, the validation cuts nothing" in trains(mixed, tmp_path / "exp")
    write_conditioned(mixed, "text", "train", codec=codec_info)
    write_conditioned(mixed, "text", "validation", codec=codec_info)
    (mixed / "unique_text_tokens.k2symbols").unlink()
    assert "no table of text symbols at" in trains(mixed, tmp_path / "exp")


def test_a_table_from_elsewhere_trains_with_a_warning(carried, tmp_path, codec_info):
    folder = tmp_path / "data"
    for split in ("train", "validation"):
        write_conditioned(folder, "text", split, codec=codec_info)
    (folder / "tokenizer.json").unlink()
    table = tmp_path / "table"
    (folder / "unique_text_tokens.k2symbols").rename(table)
    log = train(folder, tmp_path / "exp", *VALLE_FLAGS, "--num-epochs", 1, "--text-tokens", table)
    assert "does not tell how texts became symbols" in log
    assert read_checkpoint(tmp_path / "exp/epoch-1.pt")["text_extractor"] is None


def test_weights_of_another_model_are_refused(carried, unbroken, tmp_path):
    of_midi = unbroken["midi"] / "epoch-1.pt"
    exp_dir = restarted(of_midi, tmp_path / "exp")
    taken_up = ("--start-epoch", 2), ("--resume", "auto"), ("--init-from", of_midi)
    for flags in taken_up:
        log = trains(carried["text"], exp_dir, *flags)
        assert "is of VALLE (midi), and this run trains VALLE (text)" in log
        log = train(carried["text"], exp_dir, *flags, fails=True)
        assert "is of VALLE (midi), and this run trains AudioLM" in log
    table = tmp_path / "table"
    lines = (carried["text"] / "unique_text_tokens.k2symbols").read_text()
    table.write_text(lines.replace("a ", "ä ", 1))
    log = trains(carried["text"], unbroken["text"], "--start-epoch", 3, "--text-tokens", table)
    assert "was trained on another table of text symbols" in log


@pytest.mark.parametrize("mode", [0, 4])
def test_a_run_goes_on_with_its_own_prefix_mode(carried, unbroken, tmp_path, mode):
    """Whether its weights would fit or not; and a run that does not begin leaves no record."""
    exp_dir = restarted(unbroken["midi"] / "epoch-1.pt", tmp_path / "exp")
    log = trains(carried["midi"], exp_dir, "--start-epoch", 2, "--prefix-mode", mode)
    assert "epoch-1.pt was trained with --prefix-mode 1, and this run goes on from it with" in log
    assert f"--prefix-mode {mode}: set it as in the run before" in log
    assert not list(exp_dir.glob("run-*.json"))


def test_a_run_whose_weights_do_not_fit_leaves_no_record(carried, unbroken, tmp_path):
    flags = ("--init-from", unbroken["midi"] / "epoch-1.pt", "--decoder-dim", 32)
    trains(carried["midi"], tmp_path, *flags)
    assert not list(tmp_path.glob("run-*.json"))


def test_another_half_may_have_another_prefix_mode(carried, tmp_path):
    """It is the NAR half's, which stage 2 begins."""
    flags = (*VALLE_FLAGS, "--tensorboard", "false")
    train(carried["midi"], tmp_path, *flags, "--train-stage", 1, "--num-epochs", 1)
    own = ("--train-stage", 2, "--start-epoch", 2, "--num-epochs", 2, "--prefix-mode", 0)
    assert "AR half loaded from" in train(carried["midi"], tmp_path, *flags, *own)


def test_what_fits_of_another_model_can_be_a_start(carried, unbroken, tmp_path):
    flags = ("--init-from", unbroken["midi"] / "epoch-2.pt", "--init-partial", "true")
    log = train(carried["text"], tmp_path, *VALLE_FLAGS, *flags, "--num-epochs", 1)
    assert "of the model's" in log


def test_the_family_of_trainers_writes_where_its_model_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vall-e", "audio-lm"):
        run_here(trainer.main, ["--model-name", name, "--manifest-dir", "none"], fails=True)
    assert {path.name for path in (tmp_path / "exp").iterdir()} == {"valle", "audio-lm"}


def test_prompts_from_elsewhere_need_an_elsewhere(tmp_path, codec_info):
    """Recordings that are one excerpt each, as sentences are, would never give a prompt."""
    for split in ("train", "validation"):
        write_conditioned(tmp_path, "text", split, seconds=(2.2, 2.0), codec=codec_info)
    flags = (*VALLE_FLAGS, "--num-epochs", 1, "--prefix-mode", 4)
    text = train(tmp_path, tmp_path / "run", *flags, fails=True)
    assert (
        "the first 2 training cuts are all that their recordings have: take --prefix-mode 1" in text
    )
