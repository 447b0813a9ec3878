import torch
from hypothesis import given
from hypothesis import strategies as st

from valle.modules.masks import FrameRange, close_gap, length_mask

lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4)


def test_mask_is_true_on_real_frames():
    assert length_mask(torch.tensor([2, 0]), 3).tolist() == [[True, True, False], [False] * 3]


@given(lengths)
def test_closing_the_gap_joins_each_row_as_if_alone(lens):
    first_lens, second_lens = (torch.tensor(column) for column in zip(*lens, strict=True))
    B = len(lens)
    first = torch.arange(B * 5).view(B, 5)
    second = 100 + torch.arange(B * 6).view(B, 6)
    joined = close_gap(first, first_lens, second, second_lens)
    assert joined.shape == (B, 11)
    for b, (n, m) in enumerate(lens):
        expected = torch.cat([first[b, :n], second[b, :m]])
        assert torch.equal(joined[b, : n + m], expected)


@given(lengths)
def test_taking_frames_undoes_closing_the_gap(lens):
    first_lens, second_lens = (torch.tensor(column) for column in zip(*lens, strict=True))
    second = 1 + torch.arange(len(lens) * 5).view(-1, 5)
    joined = close_gap(torch.zeros_like(second), first_lens, second, second_lens)
    taken = FrameRange(first_lens, 5).take_from(joined)
    mask = length_mask(second_lens, 5)
    assert torch.equal(taken[mask], second[mask])
