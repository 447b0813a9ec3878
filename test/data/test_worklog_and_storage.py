import numpy as np
import pytest

from valle.data.storage import write_codes, write_cuts
from valle.data.worklog import WorkLog
from valle.utils.files import remove_leftovers, written_whole


def test_a_log_is_read_back_and_later_lines_win(tmp_path):
    path = tmp_path / "work.jsonl"
    with WorkLog(path) as log:
        log.add({"id": "a", "n": 1})
        log.add({"id": "ü", "n": 2})
        log.add({"id": "a", "n": 3})
        assert path.read_text().count("\n") == 3, "each line is flushed at once"
    with WorkLog(path) as log:
        assert log.entries == {"a": {"id": "a", "n": 3}, "ü": {"id": "ü", "n": 2}}


@pytest.mark.parametrize("kept_bytes", range(1, 20))
def test_a_half_written_last_line_is_cut_off(tmp_path, kept_bytes):
    path = tmp_path / "work.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + '{"id": "bü", "n": 12345}\n'.encode()[:kept_bytes])
    with WorkLog(path) as log:
        assert list(log.entries) == ["a"]
        log.add({"id": "c"})
    with WorkLog(path) as log:
        assert list(log.entries) == ["a", "c"]


def test_nothing_half_written_stands_under_a_final_name(tmp_path):
    target = tmp_path / "cuts.jsonl.gz"
    target.write_text("old")

    def cuts():
        yield from ()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_cuts(target, cuts())
    assert [p.name for p in tmp_path.iterdir()] == ["cuts.jsonl.gz"]
    assert target.read_text() == "old"


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    with written_whole(tmp_path / "a.npy") as temporary:
        temporary.write_text("done")
    (tmp_path / temporary.name).write_text("half")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_codes_are_small_integers_on_disk(tmp_path):
    codes = np.array([[0, 2047], [5, 1]])
    write_codes(tmp_path, "x", codes)
    stored = np.load(tmp_path / "x.npy")
    assert stored.dtype == np.int16
    assert np.array_equal(stored, codes)
    with pytest.raises(ValueError, match="40000 of y does not fit"):
        write_codes(tmp_path, "y", codes + 40000 - 2047)
    assert not (tmp_path / "y.npy").exists()
