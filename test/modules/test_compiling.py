"""torch.compile of the layers, and what happens where it does not work."""

import shutil

import pytest
import torch
from conftest import make_model

from valle.modules import compiling
from valle.modules.compiling import compile_layers


def layers_of(model):
    return [layer for half in (model.ar, model.nar) for layer in half.decoder.layers]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_layers_compute_the_same(batch):
    plain, compiled = make_model(num_layers=1), make_model(num_layers=1)
    assert compile_layers(layers_of(compiled), torch.device("cpu"), torch.float32)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    losses = []
    for model in (plain, compiled):
        output = model(*batch)
        output.loss.backward()
        losses.append(output.loss)
    torch.testing.assert_close(losses[0], losses[1])
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_without_a_compiler_it_runs_as_written(batch, monkeypatch, caplog):
    def fail(device, dtype):
        raise RuntimeError("\n  no compiler found\nand much more")

    monkeypatch.setattr(compiling, "_try_a_small_one", fail)
    model = make_model()
    assert not compile_layers(layers_of(model), torch.device("cpu"), torch.float32)
    assert "goes on without: no compiler found" in caplog.text
    assert model(*batch).loss.isfinite()
