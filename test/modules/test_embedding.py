import torch

from valle.modules.embedding import CodeEmbedding, PreNet, SinePositions


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
