import math
from dataclasses import replace

import pytest
import torch
from little_pieces import FRAME_RATE, RATE, make_passages

from valle.evaluation.continuations import (
    ANOTHER,
    LOOP,
    LOOP_SEC,
    NOISE,
    check_passages,
    control_rows,
    generated_row,
)

PASSAGES = make_passages(3, 2)
ROWS = control_rows(PASSAGES, RATE, FRAME_RATE, seed=0)


def test_another_piece_is_of_another_recording_and_as_long():
    short = replace(
        PASSAGES[0], true=PASSAGES[0].true[:20000], true_codes=PASSAGES[0].true_codes[:125]
    )
    passages = [short, *PASSAGES[1:]]
    rows = control_rows(passages, RATE, FRAME_RATE, seed=0)[ANOTHER]
    for index, (passage, made) in enumerate(zip(passages, rows, strict=True)):
        assert len(made) == 2
        for continuation in made:
            sources = [
                p.recording
                for p in passages
                if torch.equal(p.true[: len(continuation.sound)], continuation.sound)
                and torch.equal(p.true_codes[: len(continuation.codes)], continuation.codes)
            ]
            assert len(sources) == 1
            assert sources[0] != passage.recording
            assert len(continuation.sound) == len(passage.true)
            assert len(continuation.codes) == len(passage.true_codes), index


def test_where_all_others_are_shorter_they_are_taken_as_they_are():
    long = replace(
        PASSAGES[0],
        true=PASSAGES[0].true.repeat(2),
        true_codes=PASSAGES[0].true_codes.repeat(2),
    )
    made = control_rows([long, *PASSAGES[2:]], RATE, FRAME_RATE, seed=0)[ANOTHER][0]
    assert [len(continuation.sound) for continuation in made] == [len(PASSAGES[0].true)] * 2


def test_noise_has_the_true_level_and_true_codes_in_no_order():
    pool = set(torch.cat([p.true_codes for p in PASSAGES]).tolist())
    for passage, made in zip(PASSAGES, ROWS[NOISE], strict=True):
        one, other = made
        assert one.sound.std() == pytest.approx(float(passage.true.std()), rel=0.05)
        assert not torch.equal(one.sound, other.sound)
        assert set(one.codes.tolist()) < pool
        assert one.codes.shape == passage.true_codes.shape


def test_a_loop_repeats_the_same_frames_in_sound_and_codes():
    for passage, made in zip(PASSAGES, ROWS[LOOP], strict=True):
        for sound, codes in made:
            lengths = [
                frames
                for frames in range(1, 100)
                if torch.equal(codes[frames:], codes[:-frames])
                and torch.equal(sound[frames * 160 :], sound[: -frames * 160])
            ]
            period = lengths[0]
            assert LOOP_SEC[0] <= period / FRAME_RATE <= LOOP_SEC[1]
            assert torch.equal(codes[:period], passage.true_codes[:period])
            assert torch.equal(sound[: period * 160], passage.true[: period * 160])


def test_controls_are_the_same_with_the_same_seed_only():
    def sounds(seed: int):
        rows = control_rows(PASSAGES, RATE, FRAME_RATE, seed)
        return torch.cat([c.sound for row in rows.values() for made in row for c in made])

    assert torch.equal(sounds(1), sounds(1))
    assert not torch.equal(sounds(1), sounds(2))


def test_samples_are_cut_to_the_length_of_the_truth():
    long = replace(PASSAGES[0], samples=(torch.ones(10**6),), sample_codes=(torch.ones(10**4),))
    ((made,),) = generated_row([long])
    assert len(made.sound) == len(long.true)
    assert len(made.codes) == len(long.true_codes)


def test_errors_name_their_cause():
    check_passages(PASSAGES, FRAME_RATE)
    with pytest.raises(ValueError, match="2 passages of 1 recordings"):
        check_passages(PASSAGES[:2], FRAME_RATE)
    uneven = replace(PASSAGES[0], samples=(torch.ones(9),))
    with pytest.raises(ValueError, match="0-0 has 1 samples, but codes of 0"):
        check_passages([uneven, *PASSAGES], FRAME_RATE)
    short = replace(PASSAGES[0], true_codes=PASSAGES[0].true_codes[:49])
    for changes, what in (
        ({"true": PASSAGES[0].true * math.nan}, "the true continuation"),
        ({"prompt": PASSAGES[0].prompt / 0}, "the prompt"),
        (
            {"samples": (torch.ones(9), torch.tensor([math.inf])), "sample_codes": (1, 2)},
            "sample 2",
        ),
    ):
        broken = replace(PASSAGES[0], **changes)
        with pytest.raises(ValueError, match=f"{what} of passage 0-0 holds infinity or NaN"):
            check_passages([*PASSAGES[2:], broken], FRAME_RATE)
    with pytest.raises(ValueError, match="of 0-0 has 49 frames; at least 50 are needed, 1 s"):
        check_passages([short, *PASSAGES], FRAME_RATE)
