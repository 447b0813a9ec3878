"""run.sh: which files its last stage continues; run_midi.sh: that its last stage measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import test_evaluate_condition
from test_infer_audiolm import write_checkpoint
from tiny_codec import noise
from tiny_conditions import write_conditioned

from valle.data.storage import make_recording, whole_cut, write_cuts
from valle.utils.checkpoint import read_checkpoint

RUN = Path(__file__).parents[2] / "egs" / "atepp" / "run.sh"


def run_script(script: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(script), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": path},
        check=False,
    )


@pytest.fixture
def continue_with(codec_dir, codec_info, tmp_path):
    """Runs the stage in a folder whose test recordings are gone but for two."""
    write_checkpoint(tmp_path / "exp" / "best-valid-loss.pt", codec_info.to_dict())
    cuts = []
    for name in ("gone", "my waltz", "my fugue", "my *"):
        path = tmp_path / "my music" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        recording = make_recording(name, str(path), 8000, 8000, 1)
        if name != "gone":
            soundfile.write(path, noise(1.0, 8000, 0), 8000)
        cuts.append(whole_cut(recording, "tokens", name, 50, codec_info))
    write_cuts(tmp_path / "cuts_test.jsonl.gz", cuts)

    def run(*flags: object) -> tuple[int, str, set[str]]:
        fixed = ["--stage", 3, "--exp-dir", tmp_path / "exp", "--codec", codec_dir]
        result = run_script(RUN, *fixed, "--manifest-dir", tmp_path, *flags)
        written = (tmp_path / "exp" / "continuations").glob("*_full.wav")
        return result.returncode, result.stdout, {path.name for path in written}

    return run


def test_the_first_test_recordings_that_are_there(continue_with, tmp_path):
    status, out, written = continue_with("--num-prompts", 2)
    assert status == 0, out
    assert written == {"my waltz_full.wav", "my fugue_full.wav"}
    assert f"1 files to continue are not there and are left out: {tmp_path}/my music/gone" in out


def test_names_may_hold_blanks_and_stars(continue_with, tmp_path):
    names = [tmp_path / "my music" / name for name in ("my *.wav", "gone.wav", "my fugue.wav")]
    status, out, written = continue_with("--prompts", "\n".join(map(str, names)))
    assert status == 0, out
    assert written == {"my *_full.wav", "my fugue_full.wav"}


def test_no_file_left_to_continue(continue_with, tmp_path):
    status, out, written = continue_with("--prompts", tmp_path / "my music" / "gone.wav")
    assert (status, written) == (1, set())
    assert "No file to continue: bring the test recordings back, or name others" in out


def test_how_well_notes_are_followed_is_measured(tmp_path, codec_dir, codec_info):
    """What the README says of the recipe for MIDI."""
    exp_dir, tokens = tmp_path / "exp", tmp_path / "tokens"
    exp_dir.mkdir()
    tokens.mkdir()
    test_evaluate_condition.write_checkpoint(exp_dir / "best-valid-loss.pt", "midi", codec_info)
    test_evaluate_condition.write_tokens(tokens, "midi", codec_info)
    done = run_script(
        RUN.with_name("run_midi.sh"), "--stage", 4, "--exp-dir", exp_dir, "--manifest-dir", tokens,
        "--codec", codec_dir, "--prompt-duration", 1, "--passage-duration", 1.4,
        "--num-passages", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    content = json.loads((exp_dir / "evaluation/evaluation.json").read_text())
    assert content["condition"]["generated"]["note_f1"] is not None
    assert content["likelihood"]["by_condition"]
    assert len(content["facts"]["passages"]["names"]) == 3


@pytest.mark.parametrize("joint", [True, False])
def test_stages_train_both_halves_or_one_after_the_other(joint, codec_dir, codec_info, tmp_path):
    """Of run_midi.sh, whose sizes are options; the stages are those of all recipes."""
    for split in ("train", "validation"):
        write_conditioned(tmp_path / "data", "midi", split, codec=codec_info)
    sizes = ["--decoder-dim", 16, "--nhead", 2, "--num-decoder-layers", 1, "--num-epochs", 1]
    flags = ["--stage", 1, "--stop-stage", 2, "--joint", str(joint).lower(), "--dtype", "float32"]
    folders = ["--manifest-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"]
    script = RUN.with_name("run_midi.sh")
    done = run_script(script, *flags, *sizes, *folders, "--codec", codec_dir)
    assert done.returncode == 0, done.stdout[-2000:]
    epochs = {path.name for path in (tmp_path / "exp").glob("epoch-*.pt")}
    assert epochs == ({"epoch-1.pt"} if joint else {"epoch-1.pt", "epoch-2.pt"})
    last = read_checkpoint(tmp_path / "exp" / max(epochs))
    assert last["train_stage"] == (0 if joint else 2)
