"""Ranks that hold a part of every tensor take the steps of one process that holds them all.

Real processes meet over gloo, once with two ranks and once with three; they write down what they
saw, and the tests read it. Weights are float64, so that only the order of sums tells runs apart.
"""

import datetime
import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from valle.models import AudioLM
from valle.modules.optim import make_optimizer
from valle.utils.averaging import make_averaged_weights
from valle.utils.checkpoint import load_checkpoint, load_weights, read_checkpoint, save_checkpoint
from valle.utils.sharding import (
    check_layout,
    from_part,
    holds_shards,
    is_sharded,
    local_part,
    max_part_numel,
    on_main,
    part_of,
    shard,
    shard_like,
    shard_state,
    whole_tensors,
)

CPU = torch.device("cpu")
OPTIMIZERS = ["ScaledAdam", "AdamW"]
NUM_STEPS, CUT = 8, 5  # the checkpoint stands between two of ScaledAdam's measures of size
WILD = 6  # a step that ScaledAdam clips
V, Q = 10, 3  # codes and quantizers


def make_model():
    # not that of conftest.py, which takes each process as long to import as all its steps take
    torch.manual_seed(0)
    model = AudioLM(
        16, 2, num_layers=1, num_quantizers=Q, num_audio_tokens=V, dropout=0.0, positions="sine"
    )
    return model.double().eval()  # in eval mode it scores all stages: nothing is drawn


def global_batch(step):
    """Six rows, which two or three ranks share evenly: arguments of `AudioLM.forward`."""
    generator = torch.Generator().manual_seed(step)
    return {
        "x": torch.randint(0, V, (6, 4, Q), generator=generator),
        "x_lens": torch.tensor([4, 2, 3, 4, 1, 4]),
        "y": torch.randint(0, V, (6, 5, Q), generator=generator),
        "y_lens": torch.tensor([5, 3, 4, 5, 2, 5]),
    }


class Trainee:
    """The tiny model with an optimizer, sharded if there is a job."""

    def __init__(self, name):
        self.model = make_model()
        self.world, self.rank = 1, 0
        if dist.is_initialized():
            self.world, self.rank = dist.get_world_size(), dist.get_rank()
            layers = [*self.model.ar.decoder.layers, *self.model.nar.decoder.layers]
            shard(self.model, layers, CPU)
        self.optimizer = make_optimizer(name, self.model.parameters(), clipping_update_period=4)

    def backward(self, step):
        batch = global_batch(step)
        own = {name: tensor[self.rank :: self.world] for name, tensor in batch.items()}
        self.optimizer.zero_grad()
        # the ranks' mean is then that of all rows
        share = self.world / batch["y_lens"].sum()
        loss = self.model(**own).loss * share
        (loss * (50 if step == WILD else 1)).backward()

    def train(self, first, last):
        for step in range(first, last):
            self.backward(step)
            self.optimizer.step()
        return self

    def save(self, path, **sections):
        save_checkpoint(path, self.model, {"nhead": 4}, self.optimizer, **sections)

    def load(self, path, **sections):
        load_checkpoint(path, self.model, self.optimizer, **sections)
        return self

    def averages(self, factor):
        return {name: value.float() * factor for name, value in self.model.state_dict().items()}

    def weights(self):
        """All weights in one vector, on every rank."""
        whole = whole_tensors(list(self.model.state_dict().values()), keep=True)
        return torch.cat([tensor.flatten() for tensor in whole]).clone()


# What ranks do


def join(rank, world_size, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.set_num_threads(1)


def two_ranks(rank, world_size, folder):
    join(rank, world_size, folder)
    facts = {}
    for name in OPTIMIZERS:
        trainee = Trainee(name).train(0, CUT)
        trainee.save(folder / f"two-{name}.pt", model_avg=trainee.averages(3.0))
        trainee.train(CUT, NUM_STEPS)
        taken_up = Trainee(name).load(folder / f"one-{name}.pt").train(CUT, NUM_STEPS)
        facts[name] = {"unbroken": trainee.weights(), "taken_up": taken_up.weights()}
        facts[name] |= {"skipped": skips(trainee)}
    facts |= layout_facts(trainee) | failures(trainee, folder) | norm_facts(trainee)
    torch.save(facts, folder / f"two-rank-{rank}.pt")
    dist.destroy_process_group()


def three_ranks(rank, world_size, folder):
    join(rank, world_size, folder)
    facts = {}
    for name in OPTIMIZERS:
        trainee = Trainee(name)
        average = make_averaged_weights(trainee.model)
        trainee.load(folder / f"two-{name}.pt", model_avg=average)
        facts[name] = {
            "same_average": whole_tensors(average, keep=True),
            "taken_up": trainee.train(CUT, NUM_STEPS).weights(),
        }
    facts["parts"] = {
        n: (len(local_part(p)), max_part_numel(p)) for n, p in trainee.model.named_parameters()
    }
    torch.save(facts, folder / f"three-rank-{rank}.pt")
    dist.destroy_process_group()


def skips(trainee):
    """How many tensors of this rank move in steps that must move none."""
    moved = {}
    parts = [local_part(p.detach()) for p in trainee.model.parameters()]
    before = [part.clone() for part in parts]

    def num_moved():
        return sum(not torch.equal(p, q) for p, q in zip(parts, before, strict=True))

    trainee.backward(0)
    trainee.optimizer.found_inf = torch.ones(())
    trainee.optimizer.step()
    del trainee.optimizer.found_inf
    moved["found_inf"] = num_moved()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    trainee.backward(1)
    if trainee.rank == 1:  # the other rank's parts are finite
        grads = [local_part(p.grad) for p in trainee.model.parameters()]
        next(grad for grad in grads if grad.numel()).view(-1)[0] = math.inf
    scaler.unscale_(trainee.optimizer)
    scaler.step(trainee.optimizer)
    scaler.update()
    moved["scaler"] = num_moved()
    moved["scale"] = scaler.get_scale()
    if not hasattr(trainee.optimizer, "clipping_stats"):
        return moved
    trainee.optimizer.step()  # the gradient is as it was
    moved["gradient"] = num_moved()
    kept = [trainee.optimizer.state[p] for p in trainee.model.parameters()]
    tensors = [t for state in kept for t in state.values() if isinstance(t, torch.Tensor)]
    moved["broken"] = sum(int((~torch.isfinite(t)).sum()) for t in tensors)
    stats = trainee.optimizer.clipping_stats()[0]
    moved |= {"counted": stats["num_nonfinite"], "clipped": stats["num_clipped"]}
    return moved


def layout_facts(trainee):
    model, facts = trainee.model, {}
    facts["numel"] = {n: local_part(p).numel() for n, p in model.named_parameters()}
    facts["total"] = {n: p.numel() for n, p in model.named_parameters()}
    with torch.no_grad():
        model(**global_batch(0))
    facts["sharded_after_forward"] = all(is_sharded(p) for p in model.parameters())
    first = next(model.parameters())
    facts["kept_by"] = whole_tensors({"a": [first]}, keep=trainee.rank == 0)["a"][0] is not None
    return facts


def failures(trainee, folder):
    """What each rank is told when rank 0 alone fails, in this order."""
    told = []
    file = folder / f"two-{OPTIMIZERS[0]}.pt"  # a file, so no folder to write into

    def attempt(action):
        try:
            action()
            told.append("nothing")
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")

    def fail():
        raise KeyError("what")

    attempt(lambda: save_checkpoint(file / "a.pt", trainee.model, {}))
    attempt(lambda: save_checkpoint(folder / "b.pt", trainee.model, {"model": 1}))
    attempt(lambda: on_main(fail, CPU))
    real, calls = torch.Tensor.cpu, []

    def no_room(tensor):
        calls.append(1)
        if trainee.rank == 0 and len(calls) == 3:
            raise RuntimeError("not enough memory")
        return real(tensor)

    torch.Tensor.cpu = no_room
    attempt(lambda: save_checkpoint(folder / "b.pt", trainee.model, {}))
    torch.Tensor.cpu = real
    attempt(lambda: save_checkpoint(folder / "b.pt", trainee.model, {}))
    return {"told": told, "num_kept": len(calls)}


def norm_facts(trainee):
    """That torch's own functions serve sharded gradients."""
    trainee.backward(0)
    grads = [p.grad for p in trainee.model.parameters()]
    norm = torch.nn.utils.get_total_norm(grads).full_tensor()
    torch.nn.utils.clip_grads_with_norm_(trainee.model.parameters(), 0.5, norm)
    clipped = torch.nn.utils.get_total_norm(grads).full_tensor()
    return {"norm": norm, "clipped": clipped}


# What the tests see


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All that the processes left: they ran one after the other, one, two and three at a time."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in OPTIMIZERS:
        trainee = Trainee(name).train(0, CUT)
        trainee.save(folder / f"one-{name}.pt", model_avg=trainee.averages(3.0))
        whole = trainee.train(CUT, NUM_STEPS).weights()
        torch.save(whole, folder / f"whole-{name}.pt")
    # importing these takes each process several times as long as all its steps
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "torch._dynamo", "pytest"])
    for world_size, program in ((2, two_ranks), (3, three_ranks)):
        mp.start_processes(
            program, (world_size, folder), nprocs=world_size, start_method="forkserver"
        )
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return [torch.load(folder / f"two-rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def three(folder):
    return [torch.load(folder / f"three-rank-{rank}.pt") for rank in range(3)]


def assert_same(weights, reference):
    # a step moves weights by 1e-4 and more; Adam enlarges what sums in another order differ by
    torch.testing.assert_close(weights, reference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_steps_are_those_of_one_process(folder, two, name):
    whole = torch.load(folder / f"whole-{name}.pt")
    assert_same(two[0][name]["unbroken"], whole)
    assert torch.equal(two[0][name]["unbroken"], two[1][name]["unbroken"])
    start = Trainee(name).weights()
    assert two[0][name]["skipped"].get("clipped", 1) == 1
    assert (whole - start).abs().mean() > 1e-4  # they did go somewhere


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_run_goes_on_with_any_number_of_ranks(folder, two, three, name):
    whole = torch.load(folder / f"whole-{name}.pt")
    assert_same(two[0][name]["taken_up"], whole)  # written by one rank
    assert_same(three[0][name]["taken_up"], whole)  # written by two
    alone = Trainee(name).load(folder / f"two-{name}.pt").train(CUT, NUM_STEPS)
    assert_same(alone.weights(), whole)


def structure(value):
    """Types, names, shapes and dtypes of what a file holds."""
    if isinstance(value, dict):
        return type(value), [(key, structure(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [structure(inner) for inner in value]
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_file_of_several_ranks_is_laid_out_like_that_of_one(folder, two, name):
    one = read_checkpoint(folder / f"one-{name}.pt")
    several = read_checkpoint(folder / f"two-{name}.pt")
    assert structure(several) == structure(one)
    for key, value in one["model_avg"].items():
        torch.testing.assert_close(several["model_avg"][key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_average_of_two_ranks_is_read_by_three(folder, three, name):
    saved = read_checkpoint(folder / f"two-{name}.pt")["model_avg"]
    for rank in three:
        for key, value in rank[name]["same_average"].items():
            assert value.dtype == torch.float64
            assert torch.equal(value, saved[key].double())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_finite_on_one_rank_moves_none(two, name):
    for rank in two:
        skipped = rank[name]["skipped"]
        assert (skipped["found_inf"], skipped["scaler"], skipped["scale"]) == (0, 0, 2.0)
        if name == "ScaledAdam":
            assert (skipped["gradient"], skipped["broken"]) == (0, 0)
            assert skipped["counted"] == 3


def test_ranks_share_every_tensor_and_keep_nothing_else(two):
    totals = two[0]["total"]
    for name, numel in totals.items():
        shares = [rank["numel"][name] for rank in two]
        assert sum(shares) == numel
        if name != "ar.positions.scale":  # the one number of one row
            assert max(shares) < 0.6 * numel, name
    assert all(rank["sharded_after_forward"] for rank in two)
    assert [rank["kept_by"] for rank in two] == [True, False]


def test_tensors_of_fewer_rows_than_ranks_are_somebodys(three):
    lengths = [rank["parts"]["ar.positions.scale"] for rank in three]
    assert lengths == [(1, 1), (0, 1), (0, 1)]
    head = [rank["parts"]["ar.head.weight"] for rank in three]
    assert head == [(4, 4 * 16), (4, 4 * 16), (3, 4 * 16)]  # 10 codes and EOS


def test_all_ranks_learn_what_failed_on_the_one_that_writes(two):
    first, other = (rank["told"] for rank in two)
    kinds = [text.split(":")[0] for text in first]
    assert kinds == ["FileExistsError", "ValueError", "KeyError", "RuntimeError", "nothing"]
    kinds = [text.split(":")[0] for text in other]
    assert kinds == ["OSError", "ValueError", "RuntimeError", "RuntimeError", "nothing"]
    for mine, theirs in zip(first[:-1], other[:-1], strict=True):
        assert theirs.endswith("on rank 0: " + mine.split(": ", 1)[1])
    assert "may not be called model" in other[1]
    assert "not enough memory" in other[3]
    assert two[0]["num_kept"] == 3  # after the one that found no room, no other was kept
    assert two[1]["num_kept"] == 0


def test_norms_of_sharded_gradients_are_those_of_the_whole_ones(two):
    assert torch.equal(two[0]["norm"], two[1]["norm"])
    assert float(two[0]["clipped"]) == pytest.approx(0.5, rel=1e-4)
    assert float(two[0]["norm"]) > 0.5


# One process


@pytest.fixture
def job_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_process_that_is_alone_is_told_so():
    with pytest.raises(ValueError, match=r"this process is alone.*leave --fsdp out"):
        shard(nn.Linear(2, 2), [], CPU)
    model = nn.Linear(2, 2)
    assert not holds_shards(model)
    assert local_part(model.weight) is model.weight
    assert shard_like(model.bias, model.weight) is model.bias
    assert max_part_numel(model.weight) == 4


def test_layer_of_another_model_is_refused(job_of_one):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="1 of 2 layers are no part of the model"):
        shard(model, [model[0], nn.Linear(2, 2)], CPU)


def test_layers_and_root_are_gathered_by_themselves(job_of_one):
    from torch.distributed.fsdp import FSDPModule

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    shard(model, [model[0], model[1]], CPU)
    assert [isinstance(m, FSDPModule) for m in model.modules()] == [True, True, True, False]


def test_tensors_that_do_not_fit_are_refused(job_of_one):
    from torch.distributed.tensor import Replicate, distribute_tensor

    model = nn.Linear(3, 2)
    shard(model, [], CPU)
    assert holds_shards(model)
    assert torch.equal(local_part(shard_like(torch.ones(2, 3), model.weight)), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"shape \(3, 2\) cannot be shared out like one of \(2, 3"):
        part_of(torch.ones(3, 2), model.weight)
    with pytest.raises(ValueError, match=r"of another shape \(weight \(3, 2\) instead of \(2, 3\)"):
        load_weights(model, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "a file")
    replica = distribute_tensor(torch.ones(2, 3), model.weight.device_mesh, [Replicate()])
    with pytest.raises(ValueError, match=r"cut along their first dimension.*Replicate"):
        check_layout(replica)
    with pytest.raises(ValueError, match="cut along their first dimension"):
        make_optimizer("ScaledAdam", [nn.Parameter(replica)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_copied_for_its_tensors_and_no_others(job_of_one, name):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4, bias=False))
    shard(model, [], CPU)
    optimizer = make_optimizer(name, model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = whole_tensors(optimizer.state_dict(), keep=True)
    back = shard_state(state, optimizer)
    for i, tensors in state["state"].items():
        for key, value in tensors.items():
            # the bias has the 4 elements of ScaledAdam's scale_grads, which belong to all ranks
            per_element = key in ("moment", "second_moment", "exp_avg", "exp_avg_sq")
            assert is_sharded(back["state"][i][key]) == per_element
            if per_element:
                part = local_part(back["state"][i][key])
                assert torch.equal(part, value)
                assert part.data_ptr() != value.data_ptr()
    fewer = make_optimizer(name, [model[0].weight])
    assert shard_state(state, fewer) is state
    wrong = {"moment": torch.ones(2), "exp_avg": torch.ones(2)}
    with pytest.raises(ValueError, match=r"shape \(2,\) cannot be shared out"):
        shard_state(state | {"state": {0: wrong}}, optimizer)


def test_part_becomes_the_tensor_it_was_cut_from(job_of_one):
    model = nn.Linear(3, 2)
    shard(model, [], CPU)
    again = from_part(local_part(model.weight).detach() * 2, model.weight)
    assert torch.equal(again.full_tensor(), model.weight.full_tensor() * 2)
    assert again.placements == model.weight.placements
