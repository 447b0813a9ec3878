"""The paper of the large runs: figures that follow from one another."""

import io
import json
from contextlib import redirect_stdout

import pytest
import scaling

from valle.models import AudioLM, AudioLMConfig

TINY = "--d-model 32 --num-layers 2 --nhead 2 --num-cuts 300"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The JSON and the printed text of a run, with a fast network and a slow one."""
    file = tmp_path_factory.mktemp("scaling") / "scaling.json"
    with redirect_stdout(io.StringIO()) as printed:
        scaling.main([*TINY.split(), "--output-file", str(file)])
    return json.loads(file.read_text()), printed.getvalue()


def scale(num_gpus=64, network=1e9, params=1000, flops=1e6, draw_ms=0.0, flags=""):
    args = scaling.get_parser().parse_args(flags.split())
    model = scaling.Model(params, params // 10, params // 5, flops)
    manifest = scaling.Manifest(16.0, 40.0, draw_ms)
    return scaling.Scale.of(args, model, manifest, num_gpus, network)


def test_the_model_is_counted_as_it_is():
    config = AudioLMConfig(d_model=32, nhead=2, num_layers=2)
    model = scaling.Model.of(config, 3, 100)
    real = AudioLM(d_model=32, nhead=2, num_layers=2)
    assert model.num_parameters == sum(p.numel() for p in real.parameters())
    layers = sum(p.numel() for name, p in real.named_parameters() if ".layers." in name)
    assert model.other_parameters == model.num_parameters - layers
    assert 0 < 2 * model.layer_parameters < layers
    # three times two operations a weight of one half and a pass of the other, heads and attention
    assert model.flops_a_frame > 6 * 2 * 2 * 12 * 32**2
    assert scaling.Model.of(config, 6, 100).flops_a_frame == pytest.approx(model.flops_a_frame)


def test_more_gpus_read_more_and_a_step_takes_no_longer(run):
    fast = run[0]["scales"][:4]
    assert [row["num_gpus"] for row in fast] == [1, 8, 64, 1024]
    assert len({row["compute_ms"] for row in fast}) == 1
    for row in fast:
        assert row["step_sec"] == 150 * row["num_gpus"]
        assert row["frames_per_sec"] == pytest.approx(fast[0]["frames_per_sec"] * row["num_gpus"])
        # what is computed in a step is what was read for it
        assert row["frames_per_sec"] * row["compute_ms"] / 1e3 == pytest.approx(
            50 * row["step_sec"]
        )
        assert row["files_per_sec"] == pytest.approx(row["frames_per_sec"] / 500)
        assert row["draw_ms"] == pytest.approx(run[0]["manifest"]["draw_ms"] * row["num_gpus"])


def test_a_ring_sends_twice_the_gradients_at_most():
    one, two, many = (scale(n, params=10**6) for n in (1, 2, 1024))
    assert one.reduce_bytes == one.shard_bytes == 0
    assert two.reduce_bytes == 4e6
    assert 7.9e6 < many.reduce_bytes < 8e6
    assert many.shard_bytes == pytest.approx(1.5 * many.reduce_bytes)


def test_the_network_counts_between_nodes_alone():
    slow, fast = (scale(8, network, params=10**6) for network in (1e9, 1e11))
    assert slow.reduce_ms == fast.reduce_ms
    slow, fast = (scale(16, network, params=10**6) for network in (1e9, 1e11))
    assert slow.reduce_ms == pytest.approx(100 * fast.reduce_ms)
    beyond = scale(16, 1e15, params=10**6)  # a card faster than what leads to it is of no use
    assert beyond.reduce_ms == pytest.approx(1e3 * beyond.reduce_bytes / 450e9)


def test_what_the_backward_pass_hides():
    hidden = scale(params=10, flops=1e9)
    assert hidden.reduce_exposed_ms == hidden.shard_exposed_ms == 0
    shown = scale(params=10**9, flops=1e9)
    assert shown.reduce_exposed_ms == pytest.approx(shown.reduce_ms - shown.compute_ms * 2 / 3)
    assert shown.shard_exposed_ms == pytest.approx(shown.shard_ms - shown.compute_ms)


def test_accumulation_spares_the_network_with_ddp_alone():
    one, four = (scale(params=10**9, flags=f"--accumulate-grad-steps {n}") for n in (1, 4))
    assert four.compute_ms == pytest.approx(4 * one.compute_ms)
    assert four.reduce_bytes == one.reduce_bytes
    assert four.shard_bytes == 4 * one.shard_bytes
    assert four.frames_per_sec == one.frames_per_sec


def test_memory_is_sharded_but_for_the_layers_at_work():
    rows = [scale(n, params=10**6) for n in (1, 8, 1024)]
    # weights, gradients and two moments, and with several ranks a copy of the gradients to send
    assert [row.ddp_bytes for row in rows] == [16e6] * 3
    # two layers of a tenth of the weights, and what is in no layer
    assert [row.fsdp_bytes for row in rows] == [16e6, 16e6 / 8 + 1.6e6, 16e6 / 1024 + 1.6e6]


@pytest.mark.parametrize(
    ("settings", "slowest"),
    [
        ({"flops": 1e12}, "arithmetic"),
        ({"draw_ms": 1e5}, "drawing batches"),
        ({"params": 10**12}, "all-reduce"),
        ({"flags": "--file-reads 0.1"}, "reading files"),
    ],
)
def test_what_breaks_first_is_named(settings, slowest):
    assert scale(**settings).slowest == slowest


def test_checkpoints_hold_weights_and_moments():
    model = scaling.Model(100, 10, 20, 1.0)
    assert model.checkpoint_bytes() == 3 * 400
    assert model.checkpoint_bytes(averaged=True) == 3 * 400 + 800


def test_a_corpus_grows_by_its_hours(run):
    small, large = run[0]["corpora"]
    assert small["num_cuts"] == 740 * 360
    assert small["token_bytes"] == 740 * 3600 * 50 * 4 * 2
    manifest = run[0]["manifest"]
    assert small["pass_hours"] == pytest.approx(740 * 360 * manifest["read_us"] / 3.6e9)
    for name in ("token_bytes", "manifest_bytes", "pass_hours", "resume_hours"):
        assert large[name] / small[name] == pytest.approx(1e6 / 740)


def test_tables_show_what_the_file_holds(run):
    found, printed = run
    for title in ("The model", "A step", "Between the GPUs", "Memory", "Data", "The corpus"):
        assert f"## {title}" in printed
    assert f"| 1024 | {found['scales'][3]['step_sec']:.0f} |" in printed
    assert "| 64 | 12.5 |" in printed
    assert min(found["manifest"].values()) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--utilisation 1.5", "--utilisation is a share above 0 up to 1, got 1.5"),
        ("--file-reads 0", "--file-reads must be above 0, got 0"),
        ("--network-bandwidth 1e9 -1", "--network-bandwidth must be above 0, got -1"),
        ("--max-duration 5", "--max-duration 5 holds no cut of --cut-sec 10"),
    ],
)
def test_numbers_that_cannot_be(flags, message, capsys):
    with pytest.raises(SystemExit):
        scaling.main([*TINY.split(), *flags.split()])
    assert message in capsys.readouterr().err
