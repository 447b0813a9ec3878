import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle.data.chunking import plan_chunks
from valle.data.windows import plan_windows

sizes = st.integers(0, 200)


@given(sizes, st.integers(1, 50), st.integers(0, 20), st.integers(0, 20))
def test_chunks_cover_once_with_all_the_context_there_is(num_frames, chunk, left, right):
    frames = list(range(num_frames))
    kept = []
    for piece in plan_chunks(num_frames, chunk, left, right):
        seen = frames[piece.context_start : piece.context_stop]
        kept += seen[piece.kept()]
        assert piece.start - piece.context_start == min(left, piece.start)
        assert piece.context_stop - piece.stop == min(right, num_frames - piece.stop)
    assert kept == frames


@given(sizes, st.integers(1, 50), st.data())
def test_windows_cover_once_and_none_is_short(num_frames, window, data):
    minimum = data.draw(st.integers(0, window))
    windows = plan_windows(num_frames, window, minimum)
    assert [f for start, stop in windows for f in range(start, stop)] == list(range(num_frames))
    lengths = [stop - start for start, stop in windows]
    assert all(0 < length <= window for length in lengths)
    fits = num_frames >= minimum * -(-num_frames // window)
    if fits:
        assert all(length >= minimum for length in lengths)
    elif len(lengths) > 1:
        assert max(lengths) - min(lengths) <= 1
    if 2 * minimum <= window:
        assert all(length == window for length in lengths[:-2])


def test_a_long_remainder_stands_alone_and_a_short_one_shares():
    assert plan_windows(25, 10, 5) == [(0, 10), (10, 20), (20, 25)]
    assert plan_windows(23, 10, 5) == [(0, 10), (10, 17), (17, 23)]


def test_a_remainder_shares_with_no_more_than_it_takes():
    """Segments of 15 to 20, as MIDI-VALLE has them."""
    assert plan_windows(101, 20, 15) == [(0, 20), (20, 40), (40, 56), (56, 71), (71, 86), (86, 101)]
    assert plan_windows(52, 20, 15) == [(0, 20), (20, 36), (36, 52)]
    assert plan_windows(25, 20, 15) == [(0, 13), (13, 25)]
    assert plan_windows(9, 20, 15) == [(0, 9)]


@pytest.mark.parametrize(("window", "minimum"), [(0, 0), (10, 11), (10, -1)])
def test_impossible_windows(window, minimum):
    with pytest.raises(ValueError, match="may be a window at most"):
        plan_windows(100, window, minimum)
