import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from valle.data import GapSplit, draw_gaps, middle_gaps, split_gaps, split_prompt


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


# Gaps


@st.composite
def ragged_codes(draw, min_len: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (B, T, 2) that tell their row and frame, with lengths."""
    lens = torch.tensor(draw(st.lists(st.integers(min_len, 40), min_size=1, max_size=5)))
    T = int(lens.max())
    codes = torch.stack(torch.meshgrid(torch.arange(len(lens)), torch.arange(T), indexing="ij"), 2)
    return codes, lens


def check_partition(split: GapSplit, codes: torch.Tensor, lens: torch.Tensor) -> None:
    """The parts of each row joined are the row, and padding is zero."""
    for b, n in enumerate(lens.tolist()):
        parts = []
        for part, part_lens in zip(split[::2], split[1::2], strict=True):
            parts.append(part[b, : part_lens[b]])
            assert not part[b, part_lens[b] :].any()
        assert torch.equal(torch.cat(parts), codes[b, :n])


@given(
    ragged_codes(),
    st.sampled_from([0.2, 0.4]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
def test_drawn_gaps_cut_rows_in_three(rows, ratio, share, seed):
    codes, lens = rows
    prompt = split_prompt(codes, lens, ratio)
    x_lens, y_lens = draw_gaps(prompt, share, torch.Generator().manual_seed(seed))
    split = split_gaps(codes, lens, x_lens, y_lens)
    check_partition(split, codes, lens)
    is_gap = split.after_lens > 0
    if share == 0:
        assert not is_gap.any()
    if share == 1:
        assert torch.equal(is_gap, lens > 2)
    assert (split.x_lens[is_gap] >= 1).all()
    assert torch.equal(split.x_lens[~is_gap], prompt.x_lens[~is_gap])
    assert torch.equal(split.y_lens[~is_gap], prompt.y_lens[~is_gap])


def test_drawn_gaps_have_all_lengths_and_places_and_the_share_asked_for():
    lens = torch.full((4000,), 100)
    prompt = split_prompt(torch.zeros(4000, 100, 1, dtype=torch.long), lens, 0.4)
    x_lens, y_lens = draw_gaps(prompt, 0.3, torch.Generator().manual_seed(0))
    is_gap = x_lens + y_lens < 100
    assert 0.27 < is_gap.double().mean() < 0.33
    assert y_lens[is_gap].min() == 10
    assert y_lens[is_gap].max() == 70
    place = (x_lens - 1)[is_gap] / (99 - y_lens)[is_gap]
    assert place.min() < 0.01
    assert place.max() > 0.97
    assert 0.47 < place.mean() < 0.53


def test_drawing_gaps_takes_as_many_numbers_whatever_the_share():
    """So that two runs which differ in it meet the same dropout and stages elsewhere."""
    prompt = split_prompt(torch.zeros(3, 9, 1, dtype=torch.long), torch.tensor([9, 5, 2]), 0.4)
    states = []
    for share in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        draw_gaps(prompt, share, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


@given(ragged_codes())
def test_middle_gaps_are_the_same_each_time(rows):
    codes, lens = rows
    split = split_gaps(codes, lens, *middle_gaps(lens))
    check_partition(split, codes, lens)
    assert (split.x_lens >= 1).all()
    assert torch.equal(split.after_lens > 0, lens > 2)
    assert [part.tolist() for part in middle_gaps(torch.tensor([100]))] == [[40], [20]]


@pytest.mark.parametrize(
    ("x_lens", "y_lens"), [([3, 1], [3, 1]), ([1, 1], [0, 1]), ([-1, 1], [2, 1])]
)
def test_gaps_that_do_not_fit(x_lens, y_lens):
    codes, lens = torch.zeros(2, 5, 1, dtype=torch.long), torch.tensor([5, 2])
    with pytest.raises(
        ValueError, match="must be from 0 and from 1, and together at most the lens"
    ):
        split_gaps(codes, lens, torch.tensor(x_lens), torch.tensor(y_lens))
