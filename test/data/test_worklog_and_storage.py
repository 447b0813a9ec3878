import numpy as np
import pytest

from valle.data import worklog
from valle.data.storage import write_codes, write_cuts
from valle.data.worklog import WorkLog, read_log, take_lock
from valle.utils.files import remove_leftovers, written_whole


def test_a_log_is_read_back_while_it_is_written(tmp_path):
    path = tmp_path / "work.jsonl"
    with WorkLog(path) as log:
        for entry in ({"id": "a", "n": 1}, {"id": "ü\n", "n": 2}, {"id": "a", "n": 3}):
            log.add(entry)
            assert list(read_log(path))[-1] == entry
    with WorkLog(path) as log:
        log.add({"id": "b"})
    assert [entry["id"] for entry in read_log(path)] == ["a", "ü\n", "a", "b"]


@pytest.mark.parametrize("kept_bytes", range(1, 20))
def test_a_half_written_last_line_is_cut_off(tmp_path, kept_bytes, monkeypatch):
    monkeypatch.setattr(worklog, "_BLOCK", 7)
    path = tmp_path / "work.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + '{"id": "bü", "n": 12345}\n'.encode()[:kept_bytes])
    assert [entry["id"] for entry in read_log(path)] == ["a"]
    with WorkLog(path) as log:
        log.add({"id": "c"})
    assert [entry["id"] for entry in read_log(path)] == ["a", "c"]


@pytest.mark.parametrize("line", [bytes(40), b'{"id": "x', b'"\xff"', b"[1]", b"5", b""])
def test_a_line_that_cannot_be_read_is_logged_and_passed_over(tmp_path, caplog, line):
    path = tmp_path / "work.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n')
    assert [entry["id"] for entry in read_log(path)] == ["a", "b"]
    assert f"{path}, line 2 cannot be read: its item is done again" in caplog.text


def test_a_shared_lock_keeps_out_who_wants_it_alone(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with open(path, "rb+") as first, open(path, "rb+") as second, open(path, "rb+") as third:
        assert take_lock(first, shared=True)
        assert take_lock(second, shared=True)
        assert not take_lock(third)
        first.close()
        second.close()
        assert take_lock(third)


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path):
    """Their process numbers may be equal, on two machines."""
    with written_whole(tmp_path / "a") as first, written_whole(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_log_of_nothing_but_half_a_line(tmp_path):
    path = tmp_path / "work.jsonl"
    path.write_bytes(b'{"id": ' * 100)
    with WorkLog(path) as log:
        log.add({"id": "c"})
    assert [entry["id"] for entry in read_log(path)] == ["c"]


def test_one_process_writes_a_log(tmp_path):
    path = tmp_path / "work.jsonl"
    with WorkLog(path) as log:
        log.add({"id": "a"})
        with pytest.raises(ValueError, match=r"another process writes .*work"):
            WorkLog(path).__enter__()
    with WorkLog(path) as log:
        log.add({"id": "b"})
    assert [entry["id"] for entry in read_log(path)] == ["a", "b"]


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
