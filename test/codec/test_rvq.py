import pytest
import torch
from codec_runs import seeded, tiny_model

from valle.codec import rvq
from valle.codec.rvq_training import ResidualTrainer, commitment, straight_through

SIZES = {"codebook_size": 64, "hidden_size": 16, "target_bandwidths": [1.2]}  # 4 quantizers


def make_model():
    return tiny_model(**SIZES)


def test_nearest_is_the_nearest_in_chunks_too(monkeypatch):
    vectors, table = torch.randn(50, 6, generator=seeded()), torch.randn(20, 6, generator=seeded(1))
    expected = torch.cdist(vectors, table).argmin(dim=1)
    assert torch.equal(rvq.nearest(vectors, table), expected)
    monkeypatch.setattr(rvq, "_CHUNK", 7)
    assert torch.equal(rvq.nearest(vectors, table), expected)


def test_kmeans_finds_clusters_even_from_a_bad_start():
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = truth.repeat(100, 1) + 0.1 * torch.randn(300, 2, generator=seeded())
    start = torch.tensor([[0.1, 0.0], [99.0, 99.0], [-99.0, 99.0]])  # two of them get nothing
    centres = rvq.kmeans(vectors, start, 20, seeded())
    assert torch.cdist(truth, centres).amin(dim=1).max() < 0.1


def test_fitted_codebooks_leave_less_and_less():
    model = make_model()
    latents = torch.randn(4000, 16, generator=seeded())
    rvq.fit_codebooks(rvq.codebooks_of(model), latents, seeded())
    rest, left = latents, []
    for book in rvq.codebooks_of(model):
        rest = rest - book.embed[rvq.nearest(rest, book.embed)]
        left.append(rest.square().mean().item())
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], book.embed)
    assert 1 > left[0] > left[1] > left[2] > left[3]


def test_averages_begun_anew_leave_the_codes_where_they_are():
    model = make_model()
    books = rvq.codebooks_of(model)
    before = [book.embed.clone() for book in books]
    latents = torch.randn(300, 16, generator=seeded())
    rvq.refresh_averages(books, latents)
    for book, table in zip(books, before, strict=True):
        assert torch.equal(book.embed, table)
        assert book.cluster_size.sum() == pytest.approx(1)
        assert book.cluster_size.min() > 0
        torch.testing.assert_close(book.embed_avg / book.cluster_size[:, None], table)
    counts = rvq.count_and_sum(latents, rvq.nearest(latents, before[0]), 64)[0]
    assert books[0].cluster_size.argmax() == counts.argmax()


def test_training_codes_are_the_codes_of_transformers():
    model = make_model()
    latents = torch.randn(3, 16, 9, generator=seeded())
    levels = torch.tensor([4, 2, 1])
    found = ResidualTrainer(rvq.codebooks_of(model), seeded()).quantize(latents, levels)
    codes = model.quantizer.encode(latents)  # (Q, B, T)
    assert torch.equal(found.codes.view_as(codes), codes)
    for row, level in enumerate(levels.tolist()):
        expected = model.quantizer.decode(codes[:level, row : row + 1])
        torch.testing.assert_close(found.latents[row : row + 1], expected)


def test_levels_are_all_but_for_the_dropped_share():
    trainer = ResidualTrainer(rvq.codebooks_of(make_model()), seeded())
    assert trainer.draw_levels(50, 0.0).eq(4).all()
    levels = trainer.draw_levels(4000, 1.0)
    assert levels.unique().tolist() == [1, 2, 3, 4]
    some = (trainer.draw_levels(4000, 0.15) < 4).float().mean()
    assert some == pytest.approx(0.15 * 3 / 4, abs=0.02)


def update(model, latents, times):
    trainer = ResidualTrainer(rvq.codebooks_of(model), seeded())
    for _ in range(times):
        trainer.update(trainer.quantize(latents))
    return trainer


def test_averages_rest_on_many_vectors_for_each_code_however_small_the_batches():
    """Codes of few vectors each would follow the last ones, away from where they do best."""
    vectors = torch.randn(40000, 16, generator=seeded())
    model = make_model()
    books = rvq.codebooks_of(model)
    rvq.fit_codebooks(books, vectors[:20000], seeded())

    def error() -> float:
        latents = vectors[20000:].T[None]
        return float(
            ResidualTrainer(books, seeded()).quantize(latents).latents.sub(latents).square().mean()
        )

    before = error()
    trainer = ResidualTrainer(books, seeded())
    trainer.num_updates = 300  # settled
    for part in vectors[:20000].split(8):
        trainer.update(trainer.quantize(part.T[None]))
    assert error() < 1.02 * before


def test_codebooks_follow_latents_at_any_batch_size():
    latents = torch.randn(2, 16, 40, generator=seeded())
    books = []
    for batch in (latents.repeat(5, 1, 1), latents.repeat(25, 1, 1)):
        model = make_model()
        rvq.fit_codebooks(
            rvq.codebooks_of(model), torch.randn(2000, 16, generator=seeded(3)), seeded()
        )
        before = model.quantizer.decode(model.quantizer.encode(batch)).sub(batch).square().mean()
        update(model, batch, 20)
        after = model.quantizer.decode(model.quantizer.encode(batch)).sub(batch).square().mean()
        assert after < 0.5 * before
        books.append(model.quantizer.layers[0].codebook.embed)
    torch.testing.assert_close(books[0], books[1])


def test_codes_that_nobody_uses_come_back():
    model = make_model()
    for book in rvq.codebooks_of(model):
        book.embed[1:] = 1e3  # all but one code out of reach
        book.cluster_size.fill_(1 / 64)
        book.embed_avg.copy_(book.embed / 64)
    latents = torch.randn(8, 16, 64, generator=seeded())
    trainer = update(model, latents, 700)
    trainer.read_usage()
    trainer.update(trainer.quantize(latents))
    assert (trainer.read_usage() > 0).sum(dim=1).min() > 48
    assert trainer.read_usage().sum() == 0


def test_a_bad_step_moves_no_codebook():
    model = make_model()
    rvq.fit_codebooks(rvq.codebooks_of(model), torch.randn(500, 16, generator=seeded()), seeded())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = ResidualTrainer(rvq.codebooks_of(model), seeded())
    latents = torch.full((1, 16, 4), torch.nan)
    trainer.update(trainer.quantize(latents), is_good=torch.tensor(False))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.update(trainer.quantize(torch.randn(1, 16, 4)), is_good=torch.tensor(True))
    assert not torch.equal(
        model.quantizer.layers[0].codebook.embed, before["quantizer.layers.0.codebook.embed"]
    )


def test_straight_through_passes_value_and_gradient():
    latents = torch.randn(5, requires_grad=True, generator=seeded())
    codes = latents.detach().round()
    out = straight_through(latents, codes)
    (out * torch.arange(5.0)).sum().backward()
    torch.testing.assert_close(out, codes)
    torch.testing.assert_close(latents.grad, torch.arange(5.0))


def test_shrinking_the_latents_does_not_lower_the_commitment():
    latents, noise = torch.randn(2, 4, 50, generator=seeded()), torch.randn(2, 4, 50)
    most = latents.var()
    small = commitment(latents / 9, (latents + noise) / 9, most)
    assert small == pytest.approx(commitment(latents, latents + noise, most).item(), rel=1e-4)


def test_latents_that_run_away_raise_the_commitment():
    latents = torch.randn(2, 4, 50)
    codes, most = latents + 0.1, latents.var()
    latents_away, codes_away = latents.clone(), codes.clone()
    latents_away[0, 0, 0], codes_away[0, 0, 0] = 1000.0, 900.0
    near = commitment(latents, codes, most)
    assert commitment(latents_away, codes_away, most) > 100 * near


def test_perplexity_is_the_number_of_equally_used_codes():
    counts = torch.tensor([[5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rvq.perplexity(counts), torch.tensor([4.0, 2.0, 1.0]))
