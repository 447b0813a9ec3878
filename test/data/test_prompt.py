import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from valle.data import split_prompt


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_prompt_and_target_join_to_the_row(lengths, ratio, extra):
    lens = torch.tensor(lengths)
    codes = torch.randint(1, 100, (len(lengths), max(lengths) + extra, 3))
    x, x_lens, y, y_lens = split_prompt(codes, lens, ratio)
    assert torch.equal(x_lens + y_lens, lens)
    assert x.shape[1] == x_lens.max()
    assert y.shape[1] == y_lens.max()
    for i, n in enumerate(lengths):
        a, b = x_lens[i], y_lens[i]
        assert a >= 1
        assert b >= 1
        assert abs(a - ratio * n) <= 1
        assert torch.equal(torch.cat([x[i, :a], y[i, :b]]), codes[i, :n])
        assert not x[i, a:].any()
        assert not y[i, b:].any()


def test_a_row_is_cut_by_its_own_length():
    codes = torch.arange(20).reshape(2, 10, 1)
    split = split_prompt(codes, torch.tensor([10, 5]), 0.4)
    assert split.x_lens.tolist() == [4, 2]
    assert split.y[1, :3, 0].tolist() == [12, 13, 14]


def test_a_ratio_of_0_leaves_no_prompt():
    codes = torch.randint(0, 9, (2, 4, 3))
    x, x_lens, y, y_lens = split_prompt(codes, torch.tensor([4, 2]), 0.0)
    assert x.shape == (2, 0, 3)
    assert x_lens.tolist() == [0, 0]
    assert torch.equal(y[0], codes[0])
    assert y_lens.tolist() == [4, 2]


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match="prompt ratio"):
        split_prompt(torch.zeros(1, 4, 2).long(), torch.tensor([4]), ratio)


def test_bad_rows():
    codes = torch.zeros(2, 4, 2).long()
    for lens in ([4, 1], [5, 4]):
        with pytest.raises(ValueError, match=r"expected from 2 .* to the 4 frames"):
            split_prompt(codes, torch.tensor(lens), 0.4)
    with pytest.raises(ValueError, match=r"expected \(B, T, Q\) and \(B,\)"):
        split_prompt(codes, torch.tensor([4]), 0.4)
