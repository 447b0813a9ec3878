import numpy as np
import pytest
import torch
from repetition_tables import COLUMNS

from valle.evaluation.repetition import (
    Loop,
    entropy,
    find_loops,
    longest_run,
    measure,
    repeated_ngrams,
    share_heard_often,
    share_in_loops,
)
from valle.modules.sampling import Sampling, sample_unlike

RATE = 50.0


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1024, size=num_frames)


def with_loop(num_frames: int, start: int, period: int, rounds: float) -> np.ndarray:
    """Codes that never return, but for one loop."""
    codes = np.arange(num_frames) + 1000
    length = round(period * rounds)
    codes[start : start + length] = np.arange(length) % period
    return codes


# n-grams


def test_ngrams_of_a_melody_heard_twice_are_repeated_once():
    melody = np.arange(20)
    codes = np.concatenate([melody, melody])
    # 17 4-grams within each melody and 3 across the seam
    assert repeated_ngrams(codes, 4, horizon=40) == 17 / 37
    assert repeated_ngrams(codes, 8, horizon=40) == 13 / 33


def test_an_ngram_is_forgotten_beyond_the_horizon():
    codes = np.concatenate([np.arange(20), np.arange(20)])
    assert repeated_ngrams(codes, 4, horizon=20) > 0
    assert repeated_ngrams(codes, 4, horizon=19) == 0


def test_the_horizon_counts_from_the_latest_time_it_was_heard():
    codes = np.concatenate([np.arange(10)] * 3)
    assert repeated_ngrams(codes, 4, horizon=10) == 17 / 27  # all but the first 10


def test_single_codes_in_another_order_repeat_no_ngram():
    codes = np.concatenate([np.arange(20), np.arange(20)[::-1]])
    assert repeated_ngrams(codes, 1, horizon=40) == 0.5
    assert repeated_ngrams(codes, 2, horizon=40) == 0


def test_ngrams_of_a_frozen_code():
    assert repeated_ngrams(np.full(100, 7), 4, horizon=1) == 96 / 97


def test_too_few_frames_for_an_ngram():
    assert repeated_ngrams(np.array([1, 1, 1]), 4, horizon=10) == 0


# Entropy


def test_entropy_is_that_of_the_frequencies_in_nats():
    assert entropy(np.array([3, 3, 3, 9])) == pytest.approx(
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    )
    assert entropy(np.arange(64).repeat(3)) == pytest.approx(np.log(64))
    assert entropy(np.full(10, 5)) == 0


# What repetition-aware sampling objects to


def test_a_code_is_heard_often_above_the_threshold_only():
    often_at = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8])
    assert share_heard_often(often_at, window=10, threshold=0.1) == 1.0  # 2 of 10
    assert share_heard_often(often_at, window=10, threshold=0.2) == 0.0
    once = np.array([8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    assert share_heard_often(once, window=10, threshold=0.1) == 0.0


def test_the_window_ends_before_the_frame():
    codes = np.array([5, 5, *range(10, 20), 5])
    assert share_heard_often(codes, window=10, threshold=0.0) == 0.0
    assert share_heard_often(codes, window=12, threshold=0.0) == 1.0
    assert share_heard_often(codes, window=13, threshold=0.0) == 0.0  # nothing left to judge


def test_it_is_the_rule_of_the_sampler():
    """A code is heard often where the sampler, bound to draw it, draws another."""
    codes = np.random.default_rng(0).integers(6, size=300)
    redrawn = 0
    for t in range(10, 300):
        logits = torch.zeros(1, 6)
        logits[0, codes[t]] = 100.0
        recent = torch.as_tensor(codes[None, t - 10 : t])
        drawn = sample_unlike(
            logits, Sampling(repetition_window=10), torch.full((1, 2), 0.5), recent
        )
        redrawn += int(drawn) != codes[t]
    assert share_heard_often(codes, 10, 0.1) == pytest.approx(redrawn / 290)


# Loops


@pytest.mark.parametrize(("start", "period", "rounds"), [(0, 5, 4), (37, 12, 2), (20, 7, 6.5)])
def test_a_loop_is_found_where_it_is(start, period, rounds):
    codes = with_loop(100, start, period, rounds)
    loops = list(find_loops(codes, 50))
    assert Loop(start, start + round(period * rounds), period) in loops
    # multiples of the period say nothing else
    assert {(loop.start, loop.stop) for loop in loops} == {(start, start + round(period * rounds))}
    assert all(loop.period % period == 0 for loop in loops)


def test_a_loop_must_come_round_twice():
    assert not list(find_loops(with_loop(100, 30, 10, 1.9), 50))
    assert list(find_loops(with_loop(100, 30, 10, 2), 50)) == [Loop(30, 50, 10)]


def test_periods_beyond_the_longest_are_no_loops():
    codes = with_loop(100, 0, 20, 4)
    assert not list(find_loops(codes, 19))
    assert list(find_loops(codes, 20)) == [Loop(0, 80, 20)]


def test_a_wrong_code_ends_a_loop():
    codes = np.arange(60) % 5
    codes[30] = 99
    assert {(loop.start, loop.stop) for loop in find_loops(codes, 5)} == {(0, 30), (31, 60)}


def test_loops_in_random_codes_are_rare():
    codes = random_codes(3000)
    loops = list(find_loops(codes, 100))
    assert all(loop.period <= 2 for loop in loops)
    assert share_in_loops(loops, 3000, 50) == 0


def test_frames_in_two_loops_count_once():
    loops = [Loop(0, 50, 5), Loop(40, 100, 7), Loop(150, 160, 1)]
    assert share_in_loops(loops, 200, 50) == 0.5
    assert share_in_loops(loops, 200, 10) == 0.55
    assert share_in_loops([], 200, 10) == 0


def test_longest_run():
    assert longest_run(np.array([1, 1, 2, 2, 2, 1, 1])) == 3
    assert longest_run(np.array([2, 1, 1, 1, 1])) == 4
    assert longest_run(np.arange(5)) == 1
    assert longest_run(np.array([4])) == 1


# All of them


def test_measures_tell_a_frozen_code_a_loop_and_random_codes_apart():
    num_frames = 1000
    frozen = measure(np.full(num_frames, 3), RATE)
    looped = measure(np.arange(num_frames) % 40, RATE)
    fresh = measure(random_codes(num_frames), RATE)
    assert frozen.keys() == looped.keys() == fresh.keys() == COLUMNS.keys()
    assert frozen["longest_run_sec"] == frozen["longest_loop_sec"] == num_frames / RATE
    assert looped["longest_run_sec"] == 1 / RATE
    assert looped["longest_loop_sec"] == num_frames / RATE
    assert frozen["in_loops"] == looped["in_loops"] == 1
    assert (frozen["frozen"], looped["frozen"]) == (1, 0)
    assert frozen["often"] == 1
    assert looped["often"] == fresh["in_loops"] == fresh["repeated_8grams"] == 0
    assert frozen["entropy"] == 0
    assert looped["entropy"] == pytest.approx(np.log(40))
    assert looped["distinct"] == 40
    assert looped["repeated_4grams"] > 0.95 > 0.01 > fresh["repeated_4grams"]


def test_seconds_follow_the_frame_rate():
    codes = with_loop(1000, 100, 20, 3)
    assert measure(codes, 50.0)["longest_loop_sec"] == 60 / 50
    assert measure(codes, 100.0)["longest_loop_sec"] == 60 / 100
    assert measure(codes, 50.0)["in_loops"] == 60 / 1000
    assert measure(codes, 100.0)["in_loops"] == 0  # less than a second
    held = np.concatenate([random_codes(940), np.full(60, 7)])
    assert measure(held, 50.0)["frozen"] == 60 / 1000
    assert measure(held, 100.0)["frozen"] == 0
    slow = np.arange(1000) % 150
    assert measure(slow, 50.0)["in_loops"] == 0  # a round of 3 s
    assert measure(slow, 100.0)["in_loops"] == 1
