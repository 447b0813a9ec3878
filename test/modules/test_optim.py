"""ScaledAdam against a slow, literal reading of its formulas, and the properties it promises."""

import copy
import io
import math
import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from valle.modules import scaled_adam
from valle.modules.optim import DEFAULT_LR, make_optimizer
from valle.modules.scaled_adam import ScaledAdam

SHAPES = [(3, 4), (3, 4), (5,), (5,), (1,), (), (2, 3, 4), (3, 4)]


class Reference:
    """One tensor at a time, python numbers wherever a number will do."""

    def __init__(self, params, lr, period, scale=2.0):
        self.params, self.lr, self.period, self.scale = params, lr, period, scale
        self.t = [0] * len(params)
        self.v = [torch.zeros_like(p) for p in params]
        self.m = [torch.zeros_like(p) for p in params]
        self.w = [0.0] * len(params)
        self.s = [[0.0] * 4 for _ in params]
        self.r = [rms(p) for p in params]
        self.norms, self.threshold, self.group_t = [], math.inf, 0

    def clip(self, grads):
        norm = math.sqrt(
            sum(
                float((g * (0.1 if g.numel() == 1 else r)).square().sum())
                for g, r in zip(grads, self.r, strict=True)
                if g is not None
            )
        )
        t = self.group_t
        self.group_t += 1
        if not math.isfinite(norm):
            if t:
                self.norms.append(norm)
            return None
        if t == 0:
            return 1.0
        self.norms.append(norm)
        early = t in (10, 20, 40) and t < self.period
        if early or t % self.period == 0:
            median = statistics.median_low(self.norms[-self.period :])
            self.threshold = self.scale * median * (2 if early else 1)
        return min(1.0, self.threshold / norm)

    def step(self, grads):
        clip = self.clip(grads)
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            if g is None:
                continue
            if clip is not None:
                self.move(i, p, g * clip)
            elif p.numel() > 1:  # nothing moves, but the clock runs on
                self.s[i][self.t[i] % 4] = 0.0
                self.r[i] = rms(p) if self.t[i] % 4 == 3 else self.r[i]
            self.t[i] += 1

    def move(self, i, p, g, b1=0.9, b2=0.95):
        t, lr = self.t[i], self.lr
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        corr = 1 - b2 ** (t + 1)
        v_hat = self.v[i] / corr if corr < 0.99 else self.v[i]
        d = -lr * g / (v_hat.sqrt() + 1e-8)
        d = d * 0.1 if p.numel() == 1 else self.with_scale(i, p, g, d, b2)
        self.m[i] = b1 * self.m[i] + (1 - b1) * d
        p += self.m[i]
        if p.numel() == 1:
            p.clamp_(-10, 10)

    def with_scale(self, i, p, g, d, b2):
        t, big_b = self.t[i], b2**4
        self.s[i][t % 4] = float((p * g).sum())
        q = 0.0
        if t % 4 == 3:
            self.r[i] = rms(p)
            mean_square = sum(s * s for s in self.s[i]) / 4
            self.w[i] = big_b * self.w[i] + (1 - big_b) * mean_square
            q = -0.1 * self.lr * math.sqrt(1 - big_b ** ((t + 1) / 4))
            q *= sum(self.s[i]) / (math.sqrt(self.w[i]) + 1e-8)
            q = 0.0 if self.r[i] < 1e-5 else max(-0.1, min(0.1, q))
            q = min(q, (3 - self.r[i]) / self.r[i]) if self.r[i] > 0 else q
        return d * max(self.r[i], 1e-5) + p * q


def rms(p: Tensor) -> float:
    return math.sqrt(float((p**2).mean()))


def random_params(seed=0, dtype=torch.float64, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(size * torch.randn(shape, generator=generator, dtype=dtype))
        for shape in SHAPES
    ]


def random_grads(steps, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    bias = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [[b + torch.randn(b.shape, generator=generator, dtype=dtype) for b in bias]
            for _ in range(steps)]  # fmt: skip


def run(optimizer, params, all_grads):
    for grads in all_grads:
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()


def run_reference(params, all_grads, lr=0.05, period=1000):
    reference = Reference([p.detach().clone() for p in params], lr, period)
    for grads in all_grads:
        reference.step(grads)
    return reference


def assert_same(params, reference, rtol=1e-9):
    for p, q in zip(params, reference.params, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=rtol, atol=1e-12)


# at a rate of 2 the limits on growth come into play
@pytest.mark.parametrize(("lr", "period"), [(0.05, 7), (0.05, 1000), (2.0, 1000)])
def test_agrees_with_the_formulas(lr, period):
    params, grads = random_params(), random_grads(60)
    for i in (12, 23, 33, 45):
        grads[i] = [50 * g for g in grads[i]]  # these must be clipped
    reference = run_reference(params, grads, lr, period)
    optimizer = ScaledAdam(params, lr, clipping_update_period=period)
    run(optimizer, params, grads)
    assert_same(params, reference)
    assert optimizer.clipping_stats()[0]["num_clipped"] >= 4


def test_agrees_when_tensors_come_and_go():
    params, grads = random_params(), random_grads(40)
    for step, row in enumerate(grads):
        for i in range(len(row)):
            if (step * 7 + i * 3) % 5 == 0 or (i == 7 and step < 9):
                row[i] = None
    reference = run_reference(params, grads)
    run(ScaledAdam(params), params, grads)
    assert_same(params, reference)


def test_agrees_when_a_tensor_starts_at_zero_or_beyond_the_largest_size():
    params, grads = random_params(), random_grads(40)
    with torch.no_grad():
        params[0].zero_()
        params[2].mul_(30)
        params[6].fill_(5.0)
        params[4].fill_(9.99)
    for row in grads:
        row[4] = -row[4].abs()
    reference = run_reference(params, grads)
    run(ScaledAdam(params), params, grads)
    assert_same(params, reference)
    assert params[4].item() == 10.0  # one-element tensors stop here


def test_small_buckets_give_the_same(monkeypatch):
    monkeypatch.setitem(scaled_adam.MAX_BUCKET_ELEMENTS, "cpu", 24)
    params, grads = random_params(), random_grads(20)
    reference = run_reference(params, grads)
    run(ScaledAdam(params), params, grads)
    assert_same(params, reference)


def test_step_does_not_depend_on_the_scale_of_the_loss():
    grads = random_grads(50, dtype=torch.float32)
    one, eight = random_params(dtype=torch.float32), random_params(dtype=torch.float32)
    run(ScaledAdam(one), one, grads)
    run(ScaledAdam(eight), eight, [[8 * g for g in row] for row in grads])
    for p, q in zip(one, eight, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("cut", [1, 14, 30])
def test_resumed_run_equals_unbroken_run_bit_for_bit(cut):
    grads = random_grads(45, dtype=torch.float32)
    grads[14][2] = grads[3][0] = None
    whole = random_params(dtype=torch.float32)
    run(ScaledAdam(whole, clipping_update_period=9), whole, grads)

    first = random_params(dtype=torch.float32)
    optimizer = ScaledAdam(first, clipping_update_period=9)
    run(optimizer, first, grads[:cut])
    state = through_a_file(optimizer.state_dict())
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = ScaledAdam(second, lr=1.0, clipping_update_period=9)
    resumed.load_state_dict(state)
    run(optimizer, first, grads[cut:])  # what was saved must not move with the run it came from
    run(resumed, second, grads[cut:])
    for p, q, r in zip(whole, first, second, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_copied_optimizer_state_is_independent():
    params, grads = random_params(), random_grads(6)
    optimizer = ScaledAdam(params)
    run(optimizer, params, grads)
    twin_params, twin = copy.deepcopy((params, optimizer))
    run(twin, twin_params, grads)
    run(optimizer, params, grads)
    for p, q in zip(params, twin_params, strict=True):
        assert torch.equal(p, q)


def test_each_group_has_its_rate_and_its_own_clipping():
    params, grads = random_params(), random_grads(30)
    grads[25] = [100 * g for g in grads[25][:4]] + grads[25][4:]
    front = run_reference(params[:4], [row[:4] for row in grads], lr=0.01)
    back = run_reference(params[4:], [row[4:] for row in grads], lr=0.03)
    optimizer = ScaledAdam([{"params": params[:4], "lr": 0.01}, {"params": params[4:]}], lr=0.03)
    run(optimizer, params, grads)
    assert_same(params[:4], front)
    assert_same(params[4:], back)
    counts = [stats["num_clipped"] for stats in optimizer.clipping_stats()]
    assert counts[0] > counts[1]


def test_rate_of_zero_from_a_scheduler_is_honoured():
    params, grads = random_params(), random_grads(1)
    before = [p.detach().clone() for p in params]
    optimizer = ScaledAdam(params)
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, params, grads)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 5, 15])
def test_gradient_that_is_not_finite_moves_nothing_and_is_counted(bad, at):
    params, grads = random_params(), random_grads(30)
    grads[at][6][1, 2, 3] = bad
    reference = run_reference(params, grads)
    optimizer = ScaledAdam(params)
    run(optimizer, params, grads[:at])
    before = [p.detach().clone() for p in params]
    run(optimizer, params, grads[at : at + 1])
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert optimizer.clipping_stats()[0]["num_nonfinite"] == 1
    run(optimizer, params, grads[at + 1 :])
    assert_same(params, reference)
    assert all(torch.isfinite(p).all() for p in params)


def test_wild_gradient_hardly_changes_where_the_run_goes():
    def end(clipping_scale, wildness):
        params, grads = random_params(), random_grads(50)
        grads[30] = [wildness * g for g in grads[30]]
        run(ScaledAdam(params, clipping_scale=clipping_scale), params, grads)
        return torch.cat([p.detach().flatten() for p in params])

    clipped = (end(2.0, 1e4) - end(2.0, 1.0)).norm()
    unclipped = (end(None, 1e4) - end(None, 1.0)).norm()
    assert clipped < 0.3 * unclipped


def test_gradients_of_zero_do_not_stop_later_learning():
    params = random_params()
    zeros = [[torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]] * 12
    optimizer = ScaledAdam(params)
    run(optimizer, params, zeros)
    before = params[0].detach().clone()
    run(optimizer, params, random_grads(2))
    assert not torch.equal(params[0], before)


class NoHostSync(TorchDispatchMode):
    """Raises where the host asks for a tensor's value: .item(), a branch on it, a mask."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "local_scalar_dense" not in str(func), "a step waits for the device"
        assert "nonzero" not in str(func), "a step waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device():
    params, grads = random_params(), random_grads(45)
    with NoHostSync():
        run(ScaledAdam(params, clipping_update_period=9), params, grads)
        with pytest.raises(AssertionError, match="waits"):
            params[0].sum().item()  # the watch is awake


def test_step_is_left_out_on_request_without_waiting_for_the_device():
    params, grads = random_params(), random_grads(30)
    optimizer = ScaledAdam(params)
    run(optimizer, params, grads[:14])
    before = copy.deepcopy([p.detach() for p in params]), through_a_file(optimizer.state_dict())
    with NoHostSync():
        optimizer.found_inf = torch.ones(1)
        run(optimizer, params, grads[14:15])
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
    for now, then in zip(optimizer.state.values(), before[1]["state"].values(), strict=True):
        for name in ("moment", "second_moment"):
            assert torch.equal(now[name], then[name])
    assert optimizer.clipping_stats()[0]["num_nonfinite"] == 1
    grads[14][0][0, 0] = math.inf  # what it then goes on like
    optimizer.found_inf = torch.zeros(())
    run(optimizer, params, grads[15:])
    assert_same(params, run_reference(params=random_params(), all_grads=grads))


@pytest.mark.parametrize("unscaled_before", [True, False])
def test_gradient_scaler_leaves_no_trace(unscaled_before):
    grads = random_grads(25, dtype=torch.float32)
    plain, scaled = random_params(dtype=torch.float32), random_params(dtype=torch.float32)
    reference = ScaledAdam(plain, clipping_update_period=7)
    optimizer = ScaledAdam(scaled, clipping_update_period=7)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=5)
    for row in grads:
        run(reference, plain, [row])
        for p, g in zip(scaled, row, strict=True):
            p.grad = scaler.scale(g)
        if unscaled_before:
            scaler.unscale_(optimizer)
        with NoHostSync():
            scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**17
    for p, q in zip(plain, scaled, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    assert optimizer.clipping_stats()[0] == pytest.approx(reference.clipping_stats()[0])


def test_gradient_scaler_leaves_out_what_overflowed():
    params, grads = random_params(dtype=torch.float32), random_grads(2, dtype=torch.float32)
    optimizer, scaler = ScaledAdam(params), torch.amp.GradScaler("cpu", init_scale=8.0)
    grads[0][3][0] = math.inf
    before = [p.detach().clone() for p in params]
    for row in grads:
        moved = [not torch.equal(p, q) for p, q in zip(params, before, strict=True)]
        for p, g in zip(params, row, strict=True):
            p.grad = scaler.scale(g)
        scaler.step(optimizer)
        scaler.update()
    assert not any(moved)
    assert scaler.get_scale() == 4.0
    assert optimizer.clipping_stats()[0]["num_nonfinite"] == 1
    assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_leaves_the_gradients_alone():
    params, grads = random_params(), random_grads(1)
    run(ScaledAdam(params), params, grads)
    for p, g in zip(params, grads[0], strict=True):
        assert torch.equal(p.grad, g)


def test_minimises_a_small_problem():
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    targets = torch.tanh(inputs @ torch.randn(8, 3))
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = make_optimizer("ScaledAdam", model.parameters(), 0.03)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().sum()
        loss.backward()
        return loss

    for _ in range(300):
        losses.append(optimizer.step(closure).item())
    assert losses[-1] < 0.02 * losses[0]


def test_tensor_grows_when_only_its_size_is_wrong():
    target = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(0.05 * target)
    optimizer = ScaledAdam([p])
    for _ in range(400):
        optimizer.zero_grad()
        (p - target).square().sum().backward()
        optimizer.step()
    assert (p - target).abs().max().item() < 0.1


def test_refuses_the_state_of_another_optimizer():
    params = random_params()
    foreign = torch.optim.AdamW(params).state_dict()
    with pytest.raises(ValueError, match="not saved by ScaledAdam"):
        ScaledAdam(params).load_state_dict(foreign)


def test_refuses_the_state_of_other_tensors():
    params = random_params()
    optimizer = ScaledAdam(params)
    run(optimizer, params, random_grads(1))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"groups of \[8\] tensors"):
        ScaledAdam(params[:3]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        ScaledAdam([nn.Parameter(torch.ones(4, 3)), *params[1:]]).load_state_dict(state)
    with pytest.raises(ValueError, match="expected"):
        ScaledAdam([nn.Parameter(torch.ones(1)), *params[1:]]).load_state_dict(state)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"betas": (0.9, 1.0)}, "betas must lie"),
        ({"clipping_update_period": 0}, "clipping_update_period must be at least 1"),
        ({"clipping_scale": 0.0}, "clipping_scale must be positive"),
    ],
)
def test_refuses_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        ScaledAdam(random_params(), **setting)


def test_refuses_half_precision_weights_and_sparse_gradients():
    with pytest.raises(ValueError, match="float32 or float64"):
        ScaledAdam([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        ScaledAdam(table.parameters()).step()


def test_make_optimizer_gives_each_its_own_rate():
    for name, lr in DEFAULT_LR.items():
        optimizer = make_optimizer(name, random_params())
        assert type(optimizer).__name__ == name
        assert {group["lr"] for group in optimizer.param_groups} == {lr}
    assert make_optimizer("AdamW", random_params(), 0.5).param_groups[0]["lr"] == 0.5


def test_adamw_decays_matrices_alone():
    params = [nn.Parameter(torch.ones(shape)) for shape in [(2, 2), (3,), ()]]
    optimizer = make_optimizer("AdamW", params, 0.1, weight_decay=0.5)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert params[0].max().item() < 1.0
    assert torch.equal(params[1], torch.ones(3))
    assert params[2].item() == 1.0


def test_make_optimizer_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="choose one of ScaledAdam, AdamW"):
        make_optimizer("Eve", random_params())
    with pytest.raises(ValueError, match="frozen"):
        make_optimizer("AdamW", [])
