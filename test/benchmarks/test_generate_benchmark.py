import json
import math
import sys

import contenders
import generate
import measure
import peers
import pytest
import torch
from conftest import make_model
from contenders import Clock, Ours, Phases, first_context, lengths_between
from report import Bandwidth, WholeRow, compare, table

from valle.modules.sampling import GREEDY, Sampling

CPU = torch.device("cpu")
TINY_RUN = (
    "--d-model 32 --num-layers 2 --nhead 2 --prompt-frames 5 --new-frames 8 --batch-sizes 1 2"
    " --rounds 2 --round-frames 2 --runs 1 --step-context 20 --contexts 20 40 --probe-mb 1"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The JSON and the printed lines of a whole run at a tiny size, memory apart."""
    file = tmp_path_factory.mktemp("benchmark") / "generate.json"
    flags = [*TINY_RUN.split(), "--device", "cpu", "--output-file", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        generate.main([*flags, "--skip", "memory"])
    return json.loads(file.read_text()), "\n".join(printed)


def test_all_take_part_in_all_batch_sizes(run):
    found, _ = run
    types = {(row["name"], row["dtype"]) for row in found["end_to_end"]}
    assert {("ours", dtype) for dtype in ("float32", "bfloat16", "int8", "int4")} <= types
    for peer in ("ours, no cache", "MusicGen", "MusicGen, static cache"):
        assert {(peer, "float32"), (peer, "bfloat16")} <= types
    for batch in (1, 2):
        rows = [row for row in found["end_to_end"] if row["batch_size"] == batch]
        assert {(row["name"], row["dtype"]) for row in rows} == types


def test_speeds_and_parts_agree_with_seconds(run):
    for row in run[0]["end_to_end"]:
        assert row["num_frames"] == 8 * row["batch_size"]
        assert math.isclose(row["frames_per_sec"], row["num_frames"] / row["seconds"])
        assert math.isclose(row["times_real_time"], row["frames_per_sec"] / 50)
        assert math.isclose(row["prefill_sec"] + row["ar_sec"] + row["nar_sec"], row["seconds"])
    for row in run[0]["frame_step"] + run[0]["contexts"]:
        assert math.isclose(row["frames_per_sec"], 1000 * row["batch_size"] / row["ms"])
        assert 0 < row["cache_megabytes"] < row["megabytes"]


def test_longer_contexts_are_set_against_the_first(run):
    rows = [row for row in run[0]["contexts"] if row["dtype"] == "float32"]
    assert [row["context"] for row in rows] == [20, 40]
    assert rows[0]["ratio"] == 1
    assert math.isclose(rows[1]["cache_megabytes"], 2 * rows[0]["cache_megabytes"])


def test_a_run_says_on_what_it_ran(run):
    found, printed = run
    assert found["facts"]["torch-version"] == torch.__version__
    assert found["facts"]["num_threads"] == torch.get_num_threads()
    assert "hostname" not in found["facts"]
    assert found["arguments"]["d_model"] == 32
    low, median, high = (found["bandwidth"][name] for name in ("lowest", "median", "highest"))
    assert 0 < low <= median <= high
    assert found["facts"]["device"] in printed


def test_printed_tables_hold_every_row(run):
    found, printed = run
    rows = [
        line for line in printed.splitlines() if line.startswith("| ours") or "MusicGen" in line
    ]
    tables = found["frame_step"] + found["end_to_end"]
    assert sum(line.startswith("|") and "x MusicGen" not in line for line in rows) == len(tables)
    assert "from 5 lengths" in printed


def test_memory_is_measured_in_a_process_of_its_own(tmp_path, capfd):
    file = tmp_path / "generate.json"
    flags = [*TINY_RUN.split(), "--output-file", str(file), "--dtypes", "float32"]
    others = ["frame-step", "end-to-end", "contexts", "no-cache", "musicgen"]
    generate.main([*flags, "--batch-sizes", "1", "--skip", *others])
    rows = json.loads(file.read_text())["memory"]
    assert rows[0]["name"] == "ours"
    assert all(0 < row["loaded"] <= row["peak"] for row in rows)
    assert "MB loaded" in capfd.readouterr().out


def test_memory_process_that_fails_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "executable", "false")
    others = [name for name in generate.SECTIONS if name != "memory"]
    flags = [*TINY_RUN.split(), "--output-file", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit):
        generate.main([*flags, "--dtypes", "float32", "--skip", *others])
    assert "could not measure the memory of ours/float32" in capsys.readouterr().err


@pytest.fixture
def codes():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 20, (2, 9, 3), generator=generator)


@torch.no_grad()
def test_no_cache_and_cache_do_the_same_work(codes):
    model = make_model()
    ours = Ours(model, "float32", None, GREEDY).engine
    out = ours.inference(codes, max_new_tokens=6, ignore_eos=True, temperature=0.0)
    new = codes[:, :0, 0]
    for _ in range(6):
        logits = peers.next_logits(model.ar, codes, new)
        logits[:, model.eos_id] = -torch.inf
        new = torch.cat([new, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(out[:, 9:, 0], new)
    assert torch.equal(out[:, 9:], peers.other_quantizers(model.nar, codes, new))


@torch.no_grad()
def test_estimate_without_cache_is_the_sum_over_all_lengths(monkeypatch, codes):
    """Where the cost is a straight line of the length, few lengths tell the sum exactly."""
    costs = []

    def seconds_of(run, device):
        if run.func is peers.other_quantizers:
            return 1000.0
        costs.append(2.0 + run.args[2].shape[1])
        return costs[-1]

    monkeypatch.setattr(peers, "seconds_of", seconds_of)
    phases = peers.NoCache(make_model(), "float32", GREEDY, 3).generate(codes, 11)
    assert phases.num_lengths == len(costs) == 3
    assert math.isclose(phases.prefill, 2)
    assert math.isclose(phases.ar, sum(2 + n for n in range(1, 11)))
    assert phases.nar == 1000


@torch.no_grad()
def test_every_frame_without_a_cache_is_made_if_asked(monkeypatch, codes):
    lengths = []
    real = peers.next_logits

    def counted(ar, prompt, new):
        lengths.append(new.shape[1])
        return real(ar, prompt, new)

    monkeypatch.setattr(peers, "next_logits", counted)
    phases = peers.NoCache(make_model(), "float32", Sampling(top_k=5), 0).generate(codes, 4)
    assert lengths == [0, 1, 2, 3]
    assert phases.num_lengths == 0
    assert min(phases[:3]) > 0


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_musicgen_with_either_cache_computes_what_it_does_without(codes, static):
    config = make_model().config
    musicgen = peers.MusicGen(config, "float32", CPU, GREEDY, static)
    flat = codes.transpose(1, 2).flatten(0, 1)
    _, cache = musicgen.read(flat[:, :5], musicgen.new_cache(9))
    for i in range(5, 9):
        cached, cache = musicgen.read(flat[:, i : i + 1], cache)
        whole = musicgen.model(input_ids=flat[:, : i + 1], use_cache=False).logits[:, -1]
        torch.testing.assert_close(cached, whole, atol=1e-4, rtol=1e-4)


def test_musicgen_is_as_large_as_ours():
    """Layers of the same matrices; it has a head for each codebook and no biases."""
    model = make_model(d_model=128)
    musicgen = peers.MusicGen(model.config, "float32", CPU, GREEDY, static=False)
    theirs = contenders.num_bytes([musicgen.model.model.decoder.layers])
    assert theirs == pytest.approx(contenders.num_bytes([model.ar.decoder.layers]), rel=0.02)
    ours = Ours(model, "float32", None, GREEDY)
    assert musicgen.cache_bytes(3, 7) == ours.cache_bytes(3, 7) == 3 * 7 * 2 * 2 * 128 * 4


def test_missing_transformers_is_told_with_its_cure(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "transformers.models.musicgen", None)
    peers.musicgen_decoder.cache_clear()
    with pytest.raises(SystemExit):
        generate.main(TINY_RUN.split())
    told = capsys.readouterr().err
    assert "pip install 'transformers" in told
    assert "--skip musicgen" in told


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_sizes_must_be_positive(value, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--new-frames", value])
    assert f"--new-frames: expected a whole number from 1, got {value}" in capsys.readouterr().err


def test_bytes_of_a_frame_follow_the_type():
    model = make_model(d_model=128)
    sizes = {
        dtype: Ours(model, dtype, None, GREEDY).bytes_per_frame(1, 0)
        for dtype in ("float32", "bfloat16", "int8", "int4")
    }
    layer = 12 * 128 * 128 + (9 + 4) * 128  # matrices, their biases, two norms
    weights = 2 * layer + 2 * 128 + 21 * 128 + 21  # and the last norm and the head
    assert sizes["float32"] == 4 * weights
    assert sizes["bfloat16"] == 2 * weights
    assert sizes["int8"] == pytest.approx(weights, rel=0.1)
    assert sizes["int4"] == pytest.approx(weights * (4 + 16 / 32) / 8, rel=0.1)


@torch.no_grad()
def test_frame_step_reads_the_context_it_says():
    read = []
    ours = Ours(make_model(), "float32", False, GREEDY)
    ours.engine.ar.decode_one_frame = lambda codes, state: read.append(state.longest)
    step = ours.frame_step(batch_size=2, context=30, num_frames=10)
    step()
    assert read == [first_context(30, 10)] == [25]
    assert first_context(3, 100) == 1


def test_interleaved_steps_take_turns():
    calls: list[str] = []
    probe = measure.BandwidthProbe(CPU, 2**16)
    steps = [lambda: calls.append("a"), lambda: calls.append("b")]
    timings = measure.interleave(steps, rounds=3, num_frames=2, probe=probe)
    assert "".join(calls) == "aabb" + "bbaa" + "aabb"
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert len(probe.seen) == 1 + 3 * (2 + 1)
    assert Bandwidth.of(probe).lowest == min(probe.seen) / 1e9


def test_share_of_the_limit_is_taken_within_rounds():
    timing = measure.Timing(seconds=[1.0, 4.0, 2.0], bytes_per_sec=[100.0, 25.0, 40.0])
    assert timing.share_of_limit(50.0) == 0.5  # of 0.5, 0.5 and 0.625
    slow = measure.Timing(seconds=[2.0, 12.0, 4.0], bytes_per_sec=[1.0, 1.0, 1.0])
    assert slow.ratio_to(timing) == 2  # of 2, 3 and 2


def test_clock_divides_a_generation(monkeypatch):
    times = iter([10.0, 11.0, 15.0, 22.0])
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: next(times))
    clock = Clock(CPU, 3)
    for count in (1, 2, 3):
        clock.frame_done(count)
    assert clock.phases() == Phases(prefill=1.0, ar=4.0, nar=7.0)


def test_lengths_between_hold_both_ends():
    assert lengths_between(0, 499, 5) == [0, 125, 250, 374, 499]
    assert lengths_between(0, 1, 5) == [0, 1]
    assert lengths_between(0, 0, 5) == [0]


def test_rows_are_compared_within_their_batch():
    def row(name, dtype, batch, seconds):
        return WholeRow.of(name, dtype, batch, 100, [Phases(0.0, seconds, 0.0)], 50.0)

    rows = [
        row("ours, no cache", "float32", 1, 40.0),
        row("MusicGen", "float32", 1, 10.0),
        row("MusicGen", "bfloat16", 1, 5.0),
        row("ours", "int8", 1, 1.0),
        row("ours", "float32", 8, 1.0),
    ]
    compare(rows)
    assert math.isclose(rows[3].faster_than_no_cache, 40)
    assert math.isclose(rows[3].faster_than_musicgen, 5)
    assert rows[4].faster_than_no_cache is rows[4].faster_than_musicgen is None


def test_median_of_runs_is_one_of_them():
    runs = [Phases(0.0, total, 1.0) for total in (9.0, 1.0, 4.0)]
    row = WholeRow.of("ours", "float32", 1, 10, runs, 50.0)
    assert (row.seconds, row.ar_sec, row.num_runs) == (5.0, 4.0, 3)


def test_table_is_markdown():
    assert table(("what", "ms"), [("a", "1.5"), ("b", "-")]).splitlines() == [
        "| what | ms |",
        "| --- | ---: |",
        "| a | 1.5 |",
        "| b | - |",
    ]
