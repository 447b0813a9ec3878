import torch

from valle.modules.embedding import CodeEmbedding, PreNet, RotaryPositions, SinePositions


def test_a_frame_is_the_sum_of_its_quantizers():
    embedding = CodeEmbedding(3, 10, 8)
    codes = torch.randint(0, 10, (2, 4, 3))
    expected = sum(embedding.tables[q](codes[:, :, q]) for q in range(3))
    torch.testing.assert_close(embedding(codes), expected)
    torch.testing.assert_close(embedding(codes[:, :, :1]), embedding.tables[0](codes[:, :, 0]))


def test_levels_are_counted_per_row():
    embedding = CodeEmbedding(3, 10, 8)
    codes = torch.randint(0, 10, (2, 4, 3))
    mixed = embedding(codes, num_levels=torch.tensor([1, 3]))
    torch.testing.assert_close(mixed[0], embedding(codes[:, :, :1])[0])
    torch.testing.assert_close(mixed[1], embedding(codes)[1])


def test_positions_follow_the_paper_and_have_no_end():
    waves = SinePositions(8, learned_scale=False)(torch.tensor([0, 3, 1_000_000]))
    rate = 10000 ** (-2 / 8)
    torch.testing.assert_close(waves[0], torch.tensor([0.0, 1.0] * 4))
    torch.testing.assert_close(
        waves[1, 2:4],
        torch.tensor([3 * rate, 3 * rate])
        .sin()
        .where(torch.tensor([True, False]), torch.tensor(3 * rate).cos()),
    )
    assert waves[2].isfinite().all()


def test_scale_of_positions_learns():
    positions = SinePositions(8, learned_scale=True)
    positions(torch.arange(4)).sum().backward()
    assert positions.scale.grad is not None


def test_prenet_keeps_the_width():
    assert PreNet(16)(torch.zeros(2, 3, 16)).shape == (2, 3, 16)


def test_turned_queries_and_keys_know_how_far_apart_they_are_and_no_more():
    positions, q, k = RotaryPositions(8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    places = torch.arange(6)[None]

    def scores(shift: int) -> torch.Tensor:
        rotation = positions(places + shift)
        return rotation.turn(q) @ rotation.turn(k).mT

    torch.testing.assert_close(scores(0), scores(500), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(0), q @ k.mT, atol=1e-2)
    same = positions(torch.full((1, 6), 37))
    torch.testing.assert_close(same.turn(q) @ same.turn(k).mT, q @ k.mT, atol=1e-4, rtol=1e-4)


def test_turning_follows_the_paper():
    """Pair i turns by place x 10000^(-2i/K); a turn of the first frame is none."""
    rotation = RotaryPositions(4)(torch.tensor([[0, 3]]))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 2, 4)
    turned = rotation.turn(x)[0, 0]
    torch.testing.assert_close(turned[0], x[0, 0, 0])
    pairs = torch.complex(x[0, 0, 1, :2], x[0, 0, 1, 2:])
    angles = 3 * torch.tensor([1.0, 10000**-0.5])
    expected = pairs * torch.polar(torch.ones(2), angles)
    torch.testing.assert_close(turned[1], torch.cat([expected.real, expected.imag]))
