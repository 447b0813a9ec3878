import json
import math
import sys

import pytest
import torch
import train_report
import train_step
from conftest import TINY
from measure import Timing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_contenders import (
    MusicGenTraining,
    OurTraining,
    PlainTraining,
    TrainBatch,
    plain_ar_logits,
    plain_ar_loss,
    plain_nar_loss,
)

from valle.models import TrainStage
from valle.models.config import AudioLMConfig

CPU = torch.device("cpu")
CONFIG = AudioLMConfig(**TINY)
TINY_RUN = (
    "--d-model 32 --num-layers 2 --nhead 2 --batch-size 2 --num-frames 20 --rounds 2 --probe-mb 1"
    " --device cpu"
)


def make_batch(shortest: float = 1.0, num_frames: int = 40) -> TrainBatch:
    torch.manual_seed(1)
    return TrainBatch.random(CONFIG, 3, num_frames, 0.4, shortest, CPU)


def with_more_padding(batch: TrainBatch, num: int) -> TrainBatch:
    pad = torch.nn.functional.pad
    return TrainBatch(batch.x, batch.x_lens, pad(batch.y, (0, 0, 0, num)), batch.y_lens)


def contenders(batch: TrainBatch, stage=TrainStage.BOTH, dtype="float32", optim="ScaledAdam"):
    return [
        OurTraining(CONFIG, batch, stage, dtype, optim),
        PlainTraining(CONFIG, batch, stage, dtype, optim),
        MusicGenTraining(CONFIG, batch, dtype, optim),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The JSON and the printed lines of a whole run at a tiny size."""
    file = tmp_path_factory.mktemp("benchmark") / "train_step.json"
    flags = [*TINY_RUN.split(), "--output-file", str(file), "--skip", "compiled"]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        train_step.main(flags)
    return json.loads(file.read_text()), "\n".join(printed)


def test_all_take_part_in_all_types(run):
    names, dtypes = ("ours", "plain PyTorch", "MusicGen"), ("float32", "bfloat16")
    for section in ("steps", "memory"):
        found = [(row["name"], row["dtype"], row["optimizer"]) for row in run[0][section]]
        assert found == [(n, d, "ScaledAdam") for d in dtypes for n in names]
    assert [row["dtype"] for row in run[0]["split"]] == list(dtypes)


def test_rates_agree_with_times(run):
    for row in run[0]["steps"]:
        assert math.isclose(row["frames_per_sec"], 40_000 / row["ms"])
        gflop = row["matrix_gflop"] + row["attention_gflop"] + row["head_gflop"]
        assert math.isclose(row["gflop_per_sec"], 1000 * gflop / row["ms"])
        assert row["share_of_limit"] > 0
        if row["name"] == "plain PyTorch":
            assert row["faster_than_plain"] == 1
        if row["name"] == "MusicGen":
            assert row["faster_than_musicgen"] == 1
    for row in run[0]["split"]:
        assert min(row["forward"], row["backward"], row["update"]) > 0


def test_all_but_the_skipped_take_part():
    flags = [*TINY_RUN.split(), "--skip", "plain", "--optimizers", "ScaledAdam", "AdamW"]
    args = train_step.get_parser().parse_args(flags)
    args.device = CPU
    keys = [key.split("/") for key in train_step.Lineup(args).participants()]
    assert [key[0] for key in keys] == ["ours", "compiled", "musicgen"] * 4
    assert {tuple(key[1:]) for key in keys} == {
        (d, o) for d in ("float32", "bfloat16") for o in ("ScaledAdam", "AdamW")
    }


def test_ratios_are_those_of_speed_and_of_size():
    def row(name, dtype, num_parameters):
        return train_report.TrainRow(name, dtype, "AdamW", num_parameters, *[1.0] * 8)

    names = [("ours", "bfloat16", 30), ("plain PyTorch", "bfloat16", 30)]
    names += [("plain PyTorch", "float32", 30), ("MusicGen", "bfloat16", 10)]
    rows = [row(*name) for name in names]
    seconds = ([2.0, 4.0, 3.0], [6.0, 12.0, 9.0], [10.0, 20.0, 15.0], [1.0, 2.0, 1.5])
    train_report.compare(rows, [Timing(list(times)) for times in seconds])
    assert (rows[0].faster_than_plain, rows[0].faster_than_plain_float32) == (3, 5)
    assert rows[0].faster_than_musicgen == 1.5  # at half the speed, with three times the size
    assert rows[2].faster_than_musicgen is None


def test_a_run_says_on_what_it_ran(run):
    found, printed = run
    assert found["facts"]["torch-version"] == torch.__version__
    assert "hostname" not in found["facts"]
    assert found["arguments"]["d_model"] == 32
    assert found["facts"]["device"] in printed
    assert "frames a step: 40" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| ours")]
    assert len(rows) == 6  # three tables, two types


def test_memory_is_that_of_each_process(run):
    rows = run[0]["memory"]
    assert all(0 < row["loaded"] <= row["peak"] for row in rows)
    assert rows[1]["share_of_plain"] == 1
    assert "MB at most" in run[1]


def test_a_contender_that_ends_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "executable", "false")
    flags = [*TINY_RUN.split(), "--output-file", str(tmp_path / "x.json"), "--dtypes", "float32"]
    with pytest.raises(SystemExit):
        train_step.main([*flags, "--skip", "compiled", "musicgen", "plain", "split"])
    assert "the process of ours/float32/ScaledAdam ended" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--prompt-share 1", "--num-frames 1", "--shortest 0"])
def test_batches_without_a_frame_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        train_step.main([*TINY_RUN.split(), *flags.split()])
    assert "leave a prompt or a target without a frame" in capsys.readouterr().err


def test_rows_get_shorter_and_padding_is_not_counted_as_frames():
    batch = make_batch(shortest=0.5)
    assert batch.x_lens.tolist() == [16, 12, 8]
    assert batch.y_lens.tolist() == [24, 18, 12]
    assert batch.num_frames == 90
    assert with_more_padding(batch, 9).num_frames == 90


def test_padding_counts_in_the_reference_and_not_in_ours():
    short = make_batch(shortest=0.5)
    long = with_more_padding(short, 30)
    ours, plain, _ = contenders(short, TrainStage.AR)
    ours.model.eval(), plain.model.eval()
    losses = {}
    with torch.no_grad():
        for batch in (short, long):
            ours.batch = plain.batch = batch
            losses.setdefault("ours", []).append(ours.summed_loss())
            losses.setdefault("plain", []).append(plain.summed_loss())
    torch.testing.assert_close(*losses["ours"])
    # 3 rows x 30 more frames, each about ln(21) nats before any training
    assert losses["plain"][1] - losses["plain"][0] > 90


def test_the_reference_hides_the_future():
    batch = make_batch()
    half = PlainTraining(CONFIG, batch, TrainStage.AR, "float32", "AdamW").model.eval().ar
    y = batch.y.clone()
    y[:, 10, 0] = (y[:, 10, 0] + 1) % CONFIG.num_audio_tokens
    changed = TrainBatch(batch.x, batch.x_lens, y, batch.y_lens)
    with torch.no_grad():
        before, after = plain_ar_logits(half, batch), plain_ar_logits(half, changed)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert (before[:, 11:] - after[:, 11:]).abs().amax((1, 2)).min() > 1e-3


def test_the_reference_hides_padding():
    batch = make_batch(shortest=0.5)
    model = PlainTraining(CONFIG, batch, TrainStage.BOTH, "float32", "AdamW").model.eval()
    changed = TrainBatch(batch.x.clone(), batch.x_lens, batch.y, batch.y_lens)
    changed.x[2, 8:] = 7  # row 2 has 8 prompt frames
    for loss in (plain_ar_loss, plain_nar_loss):
        losses = []
        for b in (batch, changed):
            torch.manual_seed(0)  # one stage of the NAR half
            losses.append(loss(model.nar if loss is plain_nar_loss else model.ar, b))
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("stage", list(TrainStage))
@pytest.mark.parametrize("which", [0, 1, 2])
def test_counted_operations_are_those_that_run(stage, which):
    """Torch counts both halves of causal attention, so the formula is given the other half."""
    contender = contenders(make_batch(num_frames=200), stage)[which]
    flops = contender.flops()
    causal = flops.attention
    if which < 2:
        ar = {TrainStage.BOTH: 1 / 3, TrainStage.AR: 1, TrainStage.NAR: 0}[stage]
        causal *= ar
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        contender.loss().backward()
    assert counter.get_total_flops() == pytest.approx(flops.total + causal, rel=0.03)


@pytest.mark.parametrize("optim", ["ScaledAdam", "AdamW"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_step_learns(optim, dtype):
    torch.manual_seed(0)
    for contender in contenders(make_batch(), TrainStage.AR, dtype, optim):
        first = float(contender.loss().detach())
        for _ in range(25):
            contender.step()
        assert float(contender.loss().detach()) < first, contender.name
        assert all(tensor.grad is None for tensor in contender.learning)


def test_only_the_half_of_the_stage_learns():
    batch = make_batch()
    for make in (OurTraining, PlainTraining):
        sizes = [make(CONFIG, batch, s, "float32", "AdamW").num_parameters for s in TrainStage]
        assert sizes[0] == sizes[1] + sizes[2]
