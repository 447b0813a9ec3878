import numpy as np
import pytest

from valle.evaluation.ngrams import Bigram, Trigram, Unigram, best_score


@pytest.mark.parametrize("kind", [Unigram, Bigram])
@pytest.mark.parametrize("discount", [0.1, 0.9])
def test_probabilities_sum_to_one(kind, discount):
    model = kind([np.array([0, 1, 2, 1, 1]), np.array([4, 1])], 7, discount)
    table = model.probabilities if kind is Unigram else model.table
    np.testing.assert_allclose(table.sum(-1), 1)
    assert (table > 0).all()


def test_costs_approach_the_entropy_of_the_source():
    """A Markov chain of 4 codes: unigrams cost log 4, bigrams the entropy of its steps."""
    rng = np.random.default_rng(0)

    def draw(num_frames):
        codes = [0]
        for _ in range(num_frames - 1):
            codes.append((codes[-1] + 1) % 4 if rng.random() < 0.9 else int(rng.integers(4)))
        return np.array(codes)

    train, held_out = [draw(1000) for _ in range(20)], [draw(2000) for _ in range(3)]
    unigram, bigram = (
        best_score(kind, train, held_out, [500, 0 + 1, 100], 4) for kind in (Unigram, Bigram)
    )
    follow, other = 0.925, 0.025
    assert unigram.loss == pytest.approx(np.log(4), abs=0.01)
    assert bigram.loss == pytest.approx(
        -follow * np.log(follow) - 3 * other * np.log(other), abs=0.03
    )
    assert bigram.accuracy == pytest.approx(follow, abs=0.02)


@pytest.mark.parametrize("discount", [0.1, 0.9])
def test_a_trigram_is_its_formula(discount):
    """And its probabilities sum to one, after any two codes."""
    sequences = [np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 4], np.int16), np.array([4, 1], np.int16)]
    model, pairs = Trigram(sequences, 5, discount), Bigram(sequences, 5, discount).table
    for before in range(5):
        for last in range(5):
            row = model.probabilities(before, last)
            assert row.sum() == pytest.approx(1)
            seen = [
                int(s[t]) for s in sequences for t in range(2, len(s))
                if (s[t - 2], s[t - 1]) == (before, last)
            ]  # fmt: skip
            for code in range(5):
                expected = pairs[last, code]
                if seen:
                    counted = max(seen.count(code) - discount, 0)
                    expected = (counted + discount * len(set(seen)) * expected) / len(seen)
                assert row[code] == pytest.approx(expected)


def test_a_trigram_knows_what_a_bigram_cannot():
    """0 1 2 and 3 1 4: what follows the 1 depends on what came before it."""
    rng = np.random.default_rng(0)
    parts = np.array([[0, 1, 2], [3, 1, 4]])
    train = [parts[rng.integers(2, size=100)].ravel() for _ in range(20)]
    held_out = [parts[rng.integers(2, size=100)].ravel() for _ in range(3)]
    bigram, trigram = (best_score(k, train, held_out, [1, 2, 90], 5) for k in (Bigram, Trigram))
    # of three codes the first alone is a choice
    assert trigram.loss == pytest.approx(np.log(2) / 3, abs=0.02)
    assert bigram.loss == pytest.approx(2 * np.log(2) / 3, abs=0.02)


def test_codes_in_small_integers_do_not_overflow():
    sequence = np.full(50, 1023, np.int16)
    assert Trigram([sequence], 1024, 0.1).probabilities(1023, 1023)[1023] > 0.99


def test_scoring_begins_at_its_start():
    model = Bigram([np.array([0, 1, 0, 1, 0, 1])], 2, 0.1)
    cost, hits = model.score(np.array([1, 1, 0, 1]), start=3)
    assert hits == 1
    assert cost == pytest.approx(-np.log(model.table[0, 1]))
