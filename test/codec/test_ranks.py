"""What ranks compute together is what one computes on everything."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from valle.codec import rvq_training
from valle.codec.balancer import Balancer
from valle.codec.losses import ReconstructionLoss, rate_in_bits
from valle.codec.ranks import (
    exchange_gradients,
    gather_rows,
    own_rows,
    same_on_all_ranks,
    variance_over_ranks,
)
from valle.codec.rvq_training import ResidualTrainer, commitment
from valle.utils.dist import cleanup_dist, get_rank, get_world_size, setup_dist

RANKS = 2
WEIGHTS = {"mel": 1.0, "linear": 1.0, "waveform": 1.0, "fine": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def results() -> dict[str, Tensor]:
    """Of this rank, or of the whole where there is one."""
    everything = torch.randn(8, 4000, generator=seeded()) * torch.rand(8, 1, generator=seeded(1))
    sound, target = own_rows(everything), own_rows(everything.roll(1, 0))
    found: dict[str, Tensor] = {}
    torch.manual_seed(get_rank())  # weights that differ until they are made the same
    layer = nn.Conv1d(1, 1, 5, padding=2)
    if get_rank() == 0:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 5))
    same_on_all_ranks(layer)
    for name, backward in (("plain", backward_plain), ("balanced", backward_balanced)):
        layer.zero_grad()
        estimate = layer(sound[:, None])[:, 0]
        loss = ReconstructionLoss(8000, WEIGHTS)
        backward(loss(estimate, target), estimate)
        exchange_gradients(layer.parameters())
        found[f"gradient {name}"] = layer.weight.grad.clone()
    found |= statistics(sound) | quantizer()
    return found


def backward_plain(terms: dict[str, Tensor], _output: Tensor) -> None:
    sum(WEIGHTS[name] * term for name, term in terms.items()).backward()


def backward_balanced(terms: dict[str, Tensor], output: Tensor) -> None:
    output.backward(Balancer(WEIGHTS).gradient(terms, output))


def statistics(sound: Tensor) -> dict[str, Tensor]:
    latents = sound.reshape(sound.shape[0], 16, -1).clone().requires_grad_()
    loss = rate_in_bits(latents) + commitment(latents, latents.detach() + 1, torch.tensor(9.0))
    loss.backward()
    return {
        "variance": variance_over_ranks(sound),
        "rate": rate_in_bits(latents.detach()),
        # what the mean over ranks would make of it, had the rows one weight in common
        "gradient of statistics": gather_rows(latents.grad) / get_world_size(),
        "rows": gather_rows(sound),
    }


def quantizer() -> dict[str, Tensor]:
    """Forty updates, at some of which unused codes are revived."""
    books = [
        SimpleNamespace(
            embed=torch.randn(16, 8, generator=seeded(level)),
            embed_avg=torch.zeros(16, 8),
            cluster_size=torch.zeros(16),
        )
        for level in range(3)
    ]
    trainer = ResidualTrainer(books, seeded())
    trainer.num_updates = rvq_training.SETTLED_FROM
    levels = trainer.draw_levels(8 // get_world_size(), 0.5)
    latents = own_rows(torch.randn(8, 8, 50, generator=seeded(5)))
    for _ in range(40):
        trainer.update(trainer.quantize(latents))
    assert trainer.num_updates % rvq_training.CHECK_DEAD_EVERY == 0
    state = {f"{n}.{level}": v for level, book in enumerate(books) for n, v in vars(book).items()}
    return state | {"levels": gather_rows(levels), "usage": trainer.usage}


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    setup_dist(rank, RANKS, port, 60)
    torch.save(results(), Path(folder) / f"{rank}.pt")
    cleanup_dist()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, list[dict]]:
    """Of one process, and of each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(12411, str(folder)), nprocs=RANKS)
    return results(), [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_ranks_agree(found):
    _, (first, second) = found
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_ranks_have_what_one_has(found):
    alone, (first, _) = found
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_variance_is_that_of_all_rows():
    rows = torch.randn(50, 3, generator=seeded())
    torch.testing.assert_close(variance_over_ranks(rows), rows.var(dim=0))
