import json
import math

import pytest
import quality
import quality_variants
import torch
from conftest import write_token_cuts
from quality_contenders import MUSICGEN_KINDS, make_learner, musicgen_cost
from quality_musicgen import Shape
from quality_report import Results
from quality_sounds import Listening
from quality_variants import VARIANTS, Variant
from torch.utils.flop_counter import FlopCounterMode

from valle.models import AudioLM, AudioLMConfig

TINY_RUN = (
    "--d-model 32 --num-layers 2 --nhead 2 --epochs 3 --warmup-steps 2 --max-duration 1.5"
    " --base-lr 0.01 --sweep --dtype float32 --device cpu"
)
NAMES = ["audiolm", "musicgen", "musicgen-whole"]


@pytest.fixture(scope="module")
def flags(token_dir, codec_dir):
    return [*TINY_RUN.split(), "--manifest-dir", str(token_dir), "--codec", str(codec_dir)]


def start(flags, file, *more):
    """Run the program; return its rows and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        quality.main([*flags, "--output-file", str(file), *map(str, more)])
    return json.loads(file.read_text())["rows"], "\n".join(printed)


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """Three contenders and a variant."""
    file = tmp_path_factory.mktemp("quality") / "quality.json"
    more = ["--contenders", *NAMES, "--variant", "small-nar", "--weights-dir", file.parent]
    return *start(flags, file, *more), file


def benchmark(flags, file, *more):
    parser = quality.get_parser()
    return quality.Benchmark(parser.parse_args([*flags, "--output-file", str(file), *more]))


@pytest.fixture(scope="module")
def ready(run, flags):
    """A run that has not begun, which hears 20 frames and adds 50."""
    sizes = ["--sounds", "true", "--prompt-seconds", "0.4", "--new-seconds", "1"]
    return benchmark(flags, run[2], *sizes)


def learner_of(this, name):
    batch = next(this.tokens.training_batches(quality.prompt_ratio_of(name, this.setup)))
    return make_learner(name, this.setup, this.shape, batch), batch


def test_all_need_the_same_operations_within_two_percent(run):
    rows = run[0]
    assert list(rows) == [*NAMES, "small-nar"]
    budget = rows["audiolm"]["flops"]
    assert rows["audiolm"]["epochs"] == 3
    for row in rows.values():
        assert abs(row["flops"] / budget - 1) < 0.02
    assert rows["small-nar"]["steps"] > rows["audiolm"]["steps"] > rows["musicgen-whole"]["steps"]


def test_bodies_are_of_one_size(run):
    counts = [run[0][name]["parameters"] for name in NAMES]
    assert all(abs(c["body"] / counts[0]["body"] - 1) < 0.1 for c in counts)  # of 32 wide layers
    assert counts[0]["tables"] == 2 * 3 * 16 * 32
    assert counts[0]["heads"] == (17 + 2 * 16) * 33


def test_all_learn_from_the_same_batches_and_are_scored_on_the_same_frames(run):
    rows = run[0].values()
    assert len({row["digest"] for row in rows}) == 1
    assert len({row["num_frames"] for row in rows}) == 1
    assert all(len(row["nats"]) == 3 for row in rows)


def test_a_pattern_is_learned(run):
    for name in ("audiolm", "musicgen"):
        assert sum(run[0][name]["nats"]) < 3 * math.log(16)


def test_tables_show_every_contender(run):
    for table in ("What each was given", "What the true codes cost", "By position"):
        part = run[1].split(f"## {table}")[1].split("##")[0]
        assert [line.split(" | ")[0][2:] for line in part.splitlines() if "| " in line][2:] == [
            *NAMES,
            "small-nar",
        ]


def test_weights_are_those_that_were_scored(ready, run):
    rows, _, file = run
    model = AudioLM.from_checkpoint(file.parent / "audiolm.pt")
    frames = [b.num_targets for b in ready.tokens.held_out("validation", 0.2)]
    assert sum(frames) == rows["audiolm"]["num_frames"]
    learner, _ = learner_of(ready, "audiolm")
    learner.model.load_state_dict(model.state_dict())
    row = Results(file).rows["audiolm"]
    known, row.nats = list(row.nats), [0.0] * 3
    ready.score(row, learner, "validation")
    assert row.nats == pytest.approx(known)


def test_a_contender_that_is_there_is_not_trained_again(run, flags, monkeypatch):
    rows, _, file = run
    trained = []
    original = quality.Benchmark.trained

    def noted(self, name, *args):
        trained.append(name)
        return original(self, name, *args)

    monkeypatch.setattr(quality.Benchmark, "trained", noted)
    again, _ = start(flags, file, "--contenders", *NAMES)
    assert not trained
    assert again == rows  # the variant, which was not asked for, is kept
    copy = file.with_name("copy.json")
    copy.write_text(file.read_text())
    start(flags, copy, "--contenders", "audiolm", "musicgen", "--musicgen-lr", "0.004")
    assert trained == ["musicgen"]
    start(flags, copy, "--contenders", "audiolm", "--limit-cuts", "6")
    assert trained == ["musicgen", "audiolm"]


def test_the_same_run_finds_the_same(run, flags, tmp_path):
    rows, _ = start(flags, tmp_path / "again.json", "--contenders", "audiolm", "musicgen")
    for name in rows:
        assert rows[name]["nats"] == run[0][name]["nats"]


def test_batches_agree_whatever_the_prompt(ready):
    tokens = ready.tokens

    def digests(ratio, num):
        batches = tokens.training_batches(ratio)
        return [next(batches).digest() for _ in range(num)]

    assert digests(0.2, 20) == digests(0.4, 20)
    one, two = digests(0.2, 2)
    assert one != two


def test_the_budget_is_that_of_the_batches_taken(ready):
    learner, _ = learner_of(ready, "musicgen")
    plan = ready.tokens.plan(learner.cost, 0.2, 1e8)
    batches = ready.tokens.training_batches(0.2)
    spent = sum(learner.cost(next(batches)).total for _ in range(plan.num_steps))
    assert spent == pytest.approx(plan.flops)
    assert abs(plan.flops / 1e8 - 1) < learner.cost(next(batches)).total / 1e8


def test_rates_are_swept_for_each_and_the_best_is_taken(flags, tmp_path):
    more = ["--sweep", 0.001, 1, "--sweep-epochs", 1, "--epochs", 2, "--variant", "half-lr"]
    more += ["--contenders", *NAMES[:2]]
    rows, printed = start(flags, tmp_path / "swept.json", *more)
    trials = [name for name in rows if "rate" in name]
    assert trials == [f"{name}, rate {lr}" for name in NAMES[:2] for lr in ("1e-05", "0.01")]
    assert rows["audiolm"]["lr"] == rows["musicgen"]["lr"] == 0.01
    assert rows["half-lr"]["lr"] == 0.005
    assert rows[trials[0]]["epochs"] == 1
    assert "| audiolm | 1e-05 | 1.00 |" in printed


@pytest.mark.parametrize("name", [*VARIANTS, *MUSICGEN_KINDS])
def test_every_variant_learns(ready, name):
    learner, _ = learner_of(ready, name)
    batches = ready.tokens.training_batches(quality.prompt_ratio_of(name, ready.setup))
    learner.begin(6)
    before = [parameter.clone() for parameter in learner.model.parameters()]
    losses = [learner.learn(next(batches)) for _ in range(3)]
    assert all(loss.isfinite() for loss in losses)
    moved = [
        not torch.equal(old, new)
        for old, new in zip(before, learner.model.parameters(), strict=True)
    ]
    assert all(moved)
    assert learner.cost(next(batches)).total > 0
    json.dumps(learner.settings())
    if name in VARIANTS and name != "base":
        base, _ = learner_of(ready, "base")
        assert learner.settings() != base.settings()


def test_a_variant_may_be_functions(ready, monkeypatch):
    prepared = []

    def first_quantizer_alone(model, batch):
        return model(batch.x, batch.x_lens, batch.y, batch.y_lens, train_stage=1).loss

    mine = Variant("a trial", prepare=prepared.append, loss=first_quantizer_alone)
    monkeypatch.setitem(quality_variants.VARIANTS, "mine", mine)
    learner, batch = learner_of(ready, "mine")
    assert prepared == [learner.model]
    learner.loss().backward()
    assert all(p.grad is None for p in learner.model.nar.parameters())


def test_scoring_every_stage_is_the_mean_over_drawn_ones(ready):
    learner, batch = learner_of(ready, "every-stage")
    every = learner.summed_loss()
    learner.model.eval()  # in which forward scores every stage
    b = batch
    expected = learner.model(b.x, b.x_lens, b.y, b.y_lens, y_ends=b.y_ends).loss
    torch.testing.assert_close(every, expected)


@pytest.mark.parametrize("name", ["musicgen", "musicgen-whole", "audiolm", "every-stage"])
def test_operations_are_those_of_the_matrices(ready, name):
    """Counted while it runs, but for attention, which torch counts whole where half is needed."""
    learner, batch = learner_of(ready, name)
    with FlopCounterMode(display=False) as counter:
        learner.loss().backward()
    found = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in found.items() if "attention" not in str(op))
    cost = learner.cost(batch)
    needed = cost.matrices + cost.heads
    assert 0.9 < needed / products < 1.02


def test_what_a_musicgen_step_needs(ready):
    config = AudioLMConfig(32, 2, 1, num_quantizers=3, num_audio_tokens=16)
    batch = next(ready.tokens.training_batches(0.5))
    targets, whole = (musicgen_cost(config, Shape(32, 2), batch, w) for w in (False, True))
    assert whole.heads / targets.heads == pytest.approx(
        (batch.x.shape[1] + batch.y.shape[1]) / batch.y.shape[1]
    )
    assert whole.matrices > targets.matrices
    assert whole.attention == targets.attention


def test_a_loss_that_is_not_finite_costs_infinitely_much(flags, tmp_path, monkeypatch):
    broken = Variant("a trial", loss=lambda model, batch: model.ar.head.bias.sum() * math.nan)
    monkeypatch.setitem(quality_variants.VARIANTS, "base", broken)
    rows, printed = start(flags, tmp_path / "x.json", "--contenders", "audiolm")
    assert rows["audiolm"]["nats"] == [math.inf] * 3
    assert "| audiolm | inf |" in printed


def test_sounds_of_both_are_measured_without_training_again(run, flags, monkeypatch):
    file = run[2].with_name("sounds.json")
    file.write_text(run[2].read_text())
    more = ["--sounds", "true", "--num-prompts", 4, "--prompt-seconds", 0.1, "--new-seconds", 1]
    more += ["--weights-dir", file.parent, "--contenders", *NAMES[:2]]
    monkeypatch.delattr(quality.Benchmark, "trained")
    rows, printed = start(flags, file, *more)
    assert set(rows["audiolm"]["sounds"]) >= {"true", "generated"}
    assert rows["audiolm"]["sounds"]["true"] == rows["musicgen"]["sounds"]["true"]
    assert rows["audiolm"]["sounds"]["generated"] != rows["musicgen"]["sounds"]["generated"]
    assert "What the continuations sound like" in printed
    monkeypatch.delattr(Listening, "measure")
    assert start(flags, file, *more)[0] == rows
    with pytest.raises(AttributeError):  # another temperature is another sound
        start(flags, file, *more, "--temperature", 0.5)


def test_passages_are_what_was_given_and_what_was_made(ready):
    this = ready
    learner, _ = learner_of(ready, "musicgen")
    codes = torch.stack([excerpt.codes for excerpt in this.listening.excerpts])
    learner.model.eval()
    made = [this.listening._continued(learner, codes, i) for i in range(2)]
    assert torch.equal(made[0][:, :20], codes[:, :20])
    assert not torch.equal(made[0], made[1])
    passage = this.listening._passage(this.codec, 0, [of_all[0] for of_all in made])
    assert torch.equal(passage.true_codes, codes[0, 20:, 0])
    assert torch.equal(passage.sample_codes[1], made[1][0, 20:, 0])
    assert len(passage.prompt) == 20 * this.codec.hop_length
    assert len(passage.true) == len(passage.samples[0]) == 50 * this.codec.hop_length


def refused(flags, file, capsys, *more):
    with pytest.raises(SystemExit):
        quality.main([*flags, "--output-file", str(file), *more])
    return capsys.readouterr().err


def test_errors_say_what_to_do(flags, tmp_path, capsys):
    file = tmp_path / "quality.json"
    assert "nobody takes part" in refused(flags, file, capsys, "--contenders")
    more = ["--sounds", "true", "--new-seconds", "60"]
    assert "lower --prompt-seconds or --new-seconds" in refused(flags, file, capsys, *more)
    assert "had no batch" in refused(
        flags, file, capsys, *["--max-duration", "900", "--drop-last", "true"]
    )
    file.write_text("[]")
    assert "holds no results of this benchmark" in refused(flags, file, capsys)


def test_tokens_without_a_codec_are_refused(flags, tmp_path, capsys, codec_info):
    for split in ("train", "validation", "test"):
        write_token_cuts(tmp_path, split, 2, codec_info, record=False)
    message = refused(flags, tmp_path / "x.json", capsys, "--manifest-dir", str(tmp_path))
    assert "do not name their codec" in message


def test_other_held_out_cuts_are_another_result(ready, monkeypatch):
    learner, _ = learner_of(ready, "musicgen")
    settings = ready.settings(learner, 1, 3, is_trial=False)
    other = "of other cuts"
    monkeypatch.setattr(ready, "digest_of_held_out", lambda split: other, raising=False)
    assert ready.settings(learner, 1, 3, is_trial=False) != settings
    assert ready.settings(learner, 1, 4, is_trial=False)["num_steps"] == 4
