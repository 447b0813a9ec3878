import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from valle.modules import fused_build
from valle.modules.attention import AttentionSpan
from valle.modules.embedding import RotaryPositions
from valle.modules.fused_build import Library, compiled_library
from valle.modules.fused_step import FusedStep, why_not_fused
from valle.modules.quantization import QuantizedLinear, quantize_linears
from valle.modules.transformer import Decoder

NO_LIBRARY = compiled_library().failure
compiled = pytest.mark.skipif(NO_LIBRARY is not None, reason=f"no fused step here: {NO_LIBRARY}")
QUICK_FLAGS = "-O0 -std=c++17 -fPIC -shared -fopenmp -Wno-psabi"
BUILD = f"""
from valle.modules import fused_build
fused_build._FLAGS = "{QUICK_FLAGS}"
print(fused_build.compiled_library().failure)
"""


class Model(nn.Module):
    def __init__(self, D=32, H=4, V=37, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = Decoder(D, H, num_layers=3, **settings)
        self.head = nn.Linear(D, V)
        for parameter in self.parameters():  # norms and biases start at one and zero
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.eval()

    @torch.no_grad()
    def uncached(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, V) float32, each frame seeing all before it."""
        return self.head(self.decoder(x, AttentionSpan(is_causal=True)))

    def cache(self, B: int, max_len: int, dtype=torch.float32) -> Tensor:
        attention = self.decoder.layers[0].attention
        K = self.head.in_features // attention.nhead
        cache = torch.empty(len(self.decoder.layers), 2, B, attention.nhead, max_len, K)
        return cache.fill_(torch.nan).to(dtype)  # what was never written must never be read


def stored_as(model: Model, weights: str) -> Model:
    """Change how the linear layers are stored."""
    if weights == "bfloat16":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.bfloat16()
    elif weights != "float32":
        quantize_linears(model, int(weights.removeprefix("int")))
    return model


def as_float32(model: Model) -> Model:
    """The same weights in plain float32 layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            module.float()
        elif isinstance(module, QuantizedLinear):
            linear = nn.Linear(module.in_features, module.out_features)
            linear.weight.data, linear.bias.data = module.dequantized(), module.bias
            model.set_submodule(name, linear)
    return model


def step_through(model: Model, x: Tensor, cache: Tensor) -> Tensor:
    step = FusedStep(model.decoder, model.head)
    B, L, _ = x.shape
    return torch.stack([step(x[:, t], torch.full((B,), t), cache) for t in range(L)], dim=1)


@compiled
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_equals_the_decoder_without_cache_at_every_length(weights, norm_first):
    model = stored_as(Model(64, 4, norm_first=norm_first), weights)
    x = torch.randn(3, 40, 64)
    fused = step_through(model, x, model.cache(3, 40))
    torch.testing.assert_close(fused, as_float32(model).uncached(x), atol=1e-4, rtol=1e-4)


@compiled
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("D", "H"), [(20, 2), (48, 3), (9, 1), (6, 6), (144, 1)])
def test_any_width(weights, D, H):
    model = stored_as(Model(D, H, V=5), weights)
    x = torch.randn(2, 19, D)
    fused = step_through(model, x, model.cache(2, 19))
    torch.testing.assert_close(fused, as_float32(model).uncached(x), atol=1e-4, rtol=1e-4)


@compiled
@pytest.mark.parametrize(("D", "H"), [(64, 4), (20, 2), (24, 3), (144, 1)])
def test_turns_queries_and_keys_as_the_decoder_does(D, H):
    """Rows at places of their own, which are not those in the cache."""
    model, x = Model(D, H), torch.randn(3, 12, D)
    positions, places = RotaryPositions(D // H), torch.arange(12) + torch.tensor([[0], [7], [90]])
    span = AttentionSpan(is_causal=True, rotation=positions(places))
    with torch.no_grad():
        expected = model.head(model.decoder(x, span))
    step, cache = FusedStep(model.decoder, model.head), model.cache(3, 12)
    for t in range(12):
        rotation = positions(places[:, t : t + 1])
        logits = step(x[:, t], torch.full((3,), t), cache, rotation)
        torch.testing.assert_close(logits, expected[:, t], atol=1e-4, rtol=1e-4)


@compiled
@pytest.mark.parametrize("B", range(1, 21))
def test_any_batch_size_gives_each_row_the_same_bits(B):
    model = Model()
    x = torch.randn(20, 5, 32)[torch.randperm(20)[:B]]
    together = step_through(model, x, model.cache(B, 5))
    alone = [step_through(model, row[None], model.cache(1, 5)) for row in x]
    assert torch.equal(together, torch.cat(alone))


@compiled
@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_other_weights_give_each_row_the_same_bits_too(weights):
    model = stored_as(Model(V=36), weights)
    x = torch.randn(7, 5, 32)
    together = step_through(model, x, model.cache(7, 5))
    alone = [step_through(model, row[None], model.cache(1, 5)) for row in x]
    assert torch.equal(together, torch.cat(alone))


@compiled
def test_number_of_threads_changes_no_bit():
    model, x, before = Model(V=41), torch.randn(3, 7, 32), torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 3, 5):
        torch.set_num_threads(num_threads)
        results.append(step_through(model, x, model.cache(3, 7)))
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@compiled
def test_rows_at_different_positions_see_their_own_past():
    model, x = Model(), torch.randn(3, 12, 32)
    first = torch.tensor([0, 4, 6])
    cache, step = model.cache(3, 12), FusedStep(model.decoder, model.head)
    for row, num_frames in enumerate(first):
        own = model.cache(1, 12)
        for t in range(num_frames):
            step(x[row : row + 1, t], torch.tensor([t]), own)
        cache[:, :, row : row + 1] = own
    rows = torch.arange(3)
    fused = torch.stack([step(x[rows, first + t], first + t, cache) for t in range(6)], 1)
    uncached = model.uncached(x)
    wanted = torch.stack([uncached[rows, first + t] for t in range(6)], 1)
    torch.testing.assert_close(fused, wanted, atol=1e-4, rtol=1e-4)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writes_the_cache_at_the_positions_alone(dtype):
    model = Model()
    cache = model.cache(2, 9, dtype).nan_to_num(nan=7.0)
    before, positions = cache.clone(), torch.tensor([2, 8])
    FusedStep(model.decoder, model.head)(torch.randn(2, 32), positions, cache)
    changed = (cache != before).flatten(-1).any(-1)  # (num_layers, 2, B, H, max_len)
    wanted = torch.zeros_like(changed)
    wanted[:, :, [0, 1], :, positions] = True
    assert torch.equal(changed, wanted)


@compiled
def test_bfloat16_cache_and_input_stay_near_float32():
    model, x = Model(), torch.randn(2, 30, 32).bfloat16()
    wide = step_through(model, x.float(), model.cache(2, 30))
    narrow = step_through(model, x, model.cache(2, 30, torch.bfloat16))
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide).abs().max() < 0.05


@compiled
def test_bfloat16_cache_holds_the_nearest_values():
    model, x = Model(), torch.randn(2, 4, 32)
    wide, narrow = model.cache(2, 4), model.cache(2, 4, torch.bfloat16)
    step_through(model, x, wide)
    step_through(model, x, narrow)
    assert torch.equal(wide[0].bfloat16(), narrow[0])  # later layers have read rounded keys


@compiled
def test_scores_far_apart_overflow_nothing():
    model = Model()
    for layer in model.decoder.layers:
        layer.attention.qkv.weight.data *= 40
    x = torch.randn(2, 20, 32)
    fused = step_through(model, x, model.cache(2, 20))
    torch.testing.assert_close(fused, model.uncached(x), atol=1e-3, rtol=1e-3)


@compiled
def test_a_nan_is_not_hidden_by_a_bfloat16_cache():
    model = Model()
    cache = model.cache(1, 3, torch.bfloat16)
    logits = FusedStep(model.decoder, model.head)(
        torch.full((1, 32), torch.nan), torch.zeros(1, dtype=torch.int64), cache
    )
    assert logits.isnan().all()


@compiled
def test_weights_outlive_their_model():
    model, x = Model(), torch.randn(1, 32)
    cache, zero = model.cache(1, 3), torch.zeros(1, dtype=torch.int64)
    step = FusedStep(model.decoder, model.head)
    wanted = step(x, zero, cache)
    del model
    clutter = [torch.full((3 * 32, 32), torch.nan) for _ in range(50)]
    assert torch.equal(step(x, zero, cache), wanted)
    del clutter


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 31)}, r"x is \(2, 31\) torch.float32 on cpu; expected \(B, 32\)"),
        ({"x": torch.zeros(2, 32).half()}, "x is .* torch.float16 .*; expected"),
        ({"cache": torch.zeros(3, 2, 2, 4, 8)}, "cache is .*; expected"),
        ({"cache": torch.zeros(3, 2, 1, 4, 9, 8)}, "cache is .*; expected"),
        ({"cache": torch.zeros(3, 2, 2, 4, 8, 9).mT}, "cache is not contiguous"),
        ({"positions": torch.zeros(2)}, r"positions is .*; expected \(2,\) int64"),
        ({"positions": torch.tensor([0, 9])}, r"positions lie in \[0, 9\]; the cache has 9"),
        ({"positions": torch.tensor([-1, 0])}, r"positions lie in \[-1, 0\]"),
        (
            {"rotation": RotaryPositions(8)(torch.zeros(1, 1, dtype=torch.long))},
            r"rotation is \(1, 1, 4\) .*; expected \(2, 1, 4\)",
        ),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    model = Model()
    arguments = {
        "x": torch.zeros(2, 32),
        "positions": torch.zeros(2, dtype=torch.int64),
        "cache": model.cache(2, 9),
    }
    with pytest.raises(ValueError, match=message):
        FusedStep(model.decoder, model.head)(**(arguments | change))


@compiled
def test_refuses_a_head_of_another_kind():
    with pytest.raises(ValueError, match="the head is a Identity, not a Linear"):
        FusedStep(Model().decoder, nn.Identity())


def test_says_why_a_decoder_has_no_fused_step(monkeypatch):
    decoder = Model().decoder
    assert why_not_fused(decoder) == NO_LIBRARY
    assert "training mode" in why_not_fused(Model().decoder.train())
    assert "adaptive" in why_not_fused(Decoder(8, 2, 1, adaptive=True).eval())
    assert "no layers" in why_not_fused(Decoder(8, 2, 0).eval())
    assert "torch.float64, not float32" in why_not_fused(Model().decoder.double())
    assert "on meta, not on the CPU" in why_not_fused(Model().decoder.to("meta"))
    decoder.layers[1].attention.out = nn.Identity()
    assert "attention.out of layer 1 is a Identity" in why_not_fused(decoder)
    monkeypatch.setenv("VALLE_FUSED", "0")
    assert why_not_fused(Model().decoder) == "VALLE_FUSED=0 switches it off"
    with pytest.raises(ValueError, match=r"VALLE_FUSED=0 .*; use the decoder itself"):
        FusedStep(Model().decoder, Model().head)


def test_weights_with_gaps_are_said():
    decoder = Model().decoder
    linear = decoder.layers[0].attention.out
    linear.weight = nn.Parameter(linear.weight.data.T.contiguous().T)
    assert "attention.out of layer 0 are not contiguous" in why_not_fused(decoder)


@pytest.fixture
def build(monkeypatch, tmp_path, caplog):
    """Build as a new process would, in an empty cache folder, optimising nothing."""
    monkeypatch.setattr(fused_build, "_FLAGS", QUICK_FLAGS)
    caplog.set_level("INFO")

    def build_again(cache_home=tmp_path, **environment: str) -> tuple[Library, str]:
        for name, value in {"XDG_CACHE_HOME": str(cache_home), **environment}.items():
            monkeypatch.setenv(name, value)
        caplog.clear()
        return fused_build._library.__wrapped__(), caplog.text

    return build_again


def test_a_compiler_that_fails_is_a_reason(build):
    library, _ = build(CXX="/bin/false")
    assert library.function is None
    assert library.failure == ("/bin/false could not compile fused_step.cpp (exit status 1)")


def test_no_compiler_is_a_reason(build):
    assert "no C++ compiler was found (looked for g++" in build(CXX="", PATH="")[0].failure
    assert "nowhere/c++" in build(CXX="nowhere/c++")[0].failure


@compiled
def test_the_words_of_the_compiler_are_kept(build, monkeypatch):
    monkeypatch.setattr(fused_build, "_FLAGS", QUICK_FLAGS + " -std=c++1066")
    assert "c++1066" in build()[0].failure


@compiled
def test_an_unknown_processor_is_no_obstacle(build, tmp_path):
    picky = tmp_path / "picky"
    picky.write_text(
        f'#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nexec {fused_build._compiler()[0]} "$@"\n'
    )
    picky.chmod(0o755)
    assert build(CXX=str(picky))[0].failure is None


@compiled
def test_compiles_once_and_again_if_the_file_was_damaged(build, tmp_path):
    assert "compiling fused_step.cpp" in build()[1]
    assert build()[1] == ""
    (path,) = (tmp_path / "valle").iterdir()
    damaged = path.read_bytes()[:5000]
    path.unlink()  # this process has it loaded: cutting that file would kill it
    path.write_bytes(damaged)
    assert "compiling fused_step.cpp" in build()[1]
    assert build()[0].failure is None


@compiled
def test_a_cache_folder_that_cannot_be_made_is_no_obstacle(build, tmp_path):
    (tmp_path / "file").touch()
    assert build(cache_home=tmp_path / "file")[0].failure is None


@compiled
def test_processes_may_build_at_once(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == ["None\n", "None\n"]
    assert len(list((tmp_path / "valle").iterdir())) == 1


@compiled
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_shares_the_openmp_threads_of_torch():
    model = Model()
    step_through(model, torch.randn(1, 2, 32), model.cache(1, 2))
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len([file for file in files if "libgomp" in file or "libomp" in file]) <= 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@compiled
def test_too_little_memory_is_an_error_and_no_crash():
    """In a process of its own, whose memory is limited once its tensors are there."""
    script = """
import resource, torch
from valle.modules.fused_step import FusedStep
from valle.modules.transformer import Decoder
B, decoder = 200_000, Decoder(32, 4, num_layers=1).eval()
step, cache = FusedStep(decoder, torch.nn.Linear(32, 5)), decoder.new_cache(B, 1).data
x, positions = torch.zeros(B, 32), torch.zeros(B, dtype=torch.long)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**26, now + 2**26))
try:
    step(x, positions, cache)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "not enough memory for a frame of 200000 rows" in done.stdout, done.stderr
