import math
import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from little_pieces import FRAME_RATE, RATE, make_passages

from valle.evaluation import (
    MEASURES,
    Passage,
    compare_passages,
    evaluate_passages,
    fast_measures,
    measures_for,
    separation,
)
from valle.evaluation import passages as passages_module
from valle.evaluation.comparisons import Comparison, area_under_curve
from valle.evaluation.continuations import ANOTHER, CONTROLS, GENERATED, LOOP, NOISE, TRUE
from valle.evaluation.embeddings import Embedding
from valle.evaluation.measures import FRECHET
from valle.evaluation.traits import Traits

PASSAGES = make_passages()


def evaluate(passages: list[Passage], **options):
    options = {"num_resamples": 50, "controls": False, **options}
    return evaluate_passages(passages, RATE, FRAME_RATE, **options)


def with_samples(passages: list[Passage], *shifts: int) -> list[Passage]:
    """Samples that are the true continuations of the passages so many places on."""
    num = len(passages)
    return [
        replace(
            passage,
            samples=tuple(passages[(i + shift) % num].true for shift in shifts),
            sample_codes=tuple(passages[(i + shift) % num].true_codes for shift in shifts),
        )
        for i, passage in enumerate(passages)
    ]


@pytest.fixture(scope="module")
def separations():
    return separation(PASSAGES, RATE, FRAME_RATE)


@pytest.fixture(scope="module")
def table():
    """All rows, for a model that copies two other pieces."""
    return evaluate(with_samples(PASSAGES, 2, 4), controls=True)


CLAIMS = [(key, control) for key, measure in MEASURES.items() for control in measure.separates]


@pytest.mark.parametrize(("key", "control"), CLAIMS)
def test_a_measure_separates_what_it_says(separations, key, control):
    # eight recordings, parted, make a high floor
    limit = 1.1 if key.startswith(FRECHET) else 0.75
    assert separations[key][control] > limit


def test_every_measure_separates_from_something_and_every_control_is_separated():
    assert all(measure.separates for measure in MEASURES.values())
    assert {control for _, control in CLAIMS} == set(CONTROLS)


def test_the_table_has_every_row_and_every_measure(table):
    assert list(table) == [TRUE, GENERATED, ANOTHER, NOISE, LOOP]
    for row, cells in table.items():
        assert list(cells) == list(MEASURES)
        for key, cell in cells.items():
            if row == ANOTHER and key.startswith(FRECHET):
                assert cell.num == 0
                assert math.isnan(cell.mean)
            else:
                assert cell.num == 8
                assert cell.low <= cell.mean <= cell.high


def test_a_model_that_copies_other_pieces_scores_as_another_piece(table):
    for key in ("chroma_similarity", "rhythm_similarity", "tempo_kept", "key_kept"):
        made, other, true = (table[row][key] for row in (GENERATED, ANOTHER, TRUE))
        assert abs(made.mean - other.mean) < 0.5 * abs(true.mean - other.mean)
    for key in ("tempo_kept", "rhythm_kept", "register_kept", "key_kept", "loudness_kept"):
        assert table[ANOTHER][key].mean == pytest.approx(0.5, abs=0.17)


def test_a_model_that_goes_on_with_the_piece_scores_as_the_truth():
    """Samples are the true continuations of the recording's other cut."""
    swapped = [PASSAGES[i ^ 1] for i in range(len(PASSAGES))]
    passages = [
        replace(passage, samples=(other.true,), sample_codes=(other.true_codes,))
        for passage, other in zip(PASSAGES, swapped, strict=True)
    ]
    rows = evaluate(passages)
    for key in MEASURES:
        made, true = rows[GENERATED][key], rows[TRUE][key]
        if key.startswith("diversity"):
            assert made.num == 0  # of one sample
        elif key.startswith(FRECHET):
            assert made.mean == pytest.approx(true.mean, rel=1e-6)  # the same sets
        else:
            assert made.mean == pytest.approx(true.mean, abs=0.1), key


def test_the_same_call_gives_the_same_numbers(table):
    again = evaluate(with_samples(PASSAGES, 2, 4), controls=True)
    for row, key in product(table, MEASURES):
        # as text, in which nan equals itself
        assert repr(again[row][key]) == repr(table[row][key])
    other = evaluate(with_samples(PASSAGES, 2, 4), seed=1)
    assert other[TRUE]["key_kept"].mean == table[TRUE]["key_kept"].mean
    assert other[TRUE]["key_kept"].low != table[TRUE]["key_kept"].low


def test_a_sample_that_ended_at_once_is_measured_as_silence():
    none = torch.zeros(0)
    passages = [replace(p, samples=(none,), sample_codes=(none.long(),)) for p in PASSAGES]
    cells = evaluate(passages)[GENERATED]
    assert cells["chroma_similarity"].mean == pytest.approx(0, abs=1e-6)
    assert cells["entropy"].num == 0  # no codes, no entropy
    # as far from the prompt as can be, or further than most others
    assert cells["tempo_kept"].mean < 0.1
    assert cells["loudness_kept"].mean == 0


def test_without_samples_the_other_rows_stand():
    rows = evaluate(PASSAGES)
    assert all(cell.num == 0 for cell in rows[GENERATED].values())
    assert rows[TRUE]["key_kept"].num == 8


def test_the_name_of_an_embedding_is_part_of_the_numbers_name(codec_dir, codec_info):
    name = f"codec:{codec_dir}"
    rows = evaluate(PASSAGES, embeddings=["chroma", name])
    assert list(rows[TRUE]) == list(measures_for(["chroma", name]))
    assert measures_for([name])["frechet_" + name].title == f"Fréchet distance, {name}"
    assert rows[TRUE]["frechet_" + name].num == 8
    assert rows[TRUE]["frechet_" + name].mean != rows[TRUE]["frechet_chroma"].mean
    with pytest.raises(ValueError, match="is the codec that the generator speaks"):
        evaluate(PASSAGES, embeddings=[name], generator_codec=codec_info.fingerprint)


def test_fast_measures_are_those_of_the_table_under_short_names():
    passages = with_samples(PASSAGES, 2)
    fast, cells = fast_measures(passages, RATE, FRAME_RATE), evaluate(passages)[GENERATED]
    for name, key in {"onset_similarity": "rhythm_similarity"}.items():
        assert fast[name] == cells[key].mean
    for name in ("chroma_similarity", "tempo_kept", "key_kept", "entropy", "in_loops"):
        assert fast[name] == cells[name].mean
    assert all(re.fullmatch("[a-z_]+", name) for name in fast)
    true = [replace(p, samples=(p.true,), sample_codes=(p.true_codes,)) for p in PASSAGES]
    assert fast_measures(true, RATE, FRAME_RATE)["frechet_mel_paired"] == pytest.approx(0, abs=1e-6)


def test_fast_measures_leave_out_what_they_cannot_measure():
    assert "frechet_mel_paired" not in fast_measures(PASSAGES[:3], RATE, FRAME_RATE)


def test_passages_of_one_recording_are_refused():
    for function in (evaluate_passages, separation, fast_measures):
        with pytest.raises(ValueError, match="2 passages of 1 recordings"):
            function(PASSAGES[:2], RATE, FRAME_RATE)


# Traits made by hand: what the comparison does with them, without any sound


def traits(level_db: float = 0.0, at: float = 0.0) -> Traits:
    flat, vectors = torch.ones(12), torch.full((3, 2), at)
    return Traits(flat, torch.ones(73), flat, 100.0, 1.0, level_db, {"e": vectors}, {})


def comparison(recordings: str, true: list[Traits], made: list[list[Traits]]) -> Comparison:
    prompts = [traits() for _ in recordings]
    return Comparison(list(recordings), prompts, {TRUE: [[x] for x in true], GENERATED: made})


def test_the_first_sample_alone_is_in_a_set():
    made = [[traits(at=1), traits(at=9)], [traits(at=2), traits(at=9)]]
    found = comparison("ab", [traits(), traits()], made).moments("e", GENERATED)
    assert found.counts.tolist() == [3, 3]
    assert found.sums[:, 0].tolist() == [3, 6]


def test_a_tie_counts_one_half():
    true = [traits(level_db=5), traits(level_db=5)]
    made = [[traits(level_db=level)] for level in (-5.0, 6.0)]  # as far off as the other; further
    assert comparison("ab", true, made).values("loudness_kept", GENERATED) == [0.5, 0.0]


def test_every_other_recording_counts_the_same():
    """Beaten: both passages of b; not the three of c."""
    levels = [0, 9, 9, 1, 1, 1]
    made = [[traits(level_db=5)]] + [[traits()]] * 5
    table = comparison("abbccc", [traits(level_db=x) for x in levels], made)
    assert table.values("loudness_kept", GENERATED)[0] == 0.5


def test_where_all_is_the_same_nothing_is_divided():
    made = [[traits(), traits()]] * 4
    table = comparison("aabb", [traits()] * 4, made)
    assert math.isnan(table.values("diversity_e", GENERATED)[0])
    cells = table.intervals(0, 5)[GENERATED]
    assert cells["diversity_e"].num == 0
    assert cells["frechet_e"].mean == 0
    rows = dict.fromkeys(CONTROLS, made) | table.rows
    told = Comparison(table.recordings, table.prompts, rows).separation(0)
    assert math.isnan(told["frechet_e"][NOISE])
    assert told["loudness_kept"][NOISE] == 0.5
    with pytest.raises(ValueError, match="rows are true, generated: what tells true music"):
        table.separation(0)


def test_every_sound_is_measured_once_for_both_tables(table, separations, monkeypatch):
    measured = []
    measure = passages_module.measure_traits

    def counted(made, rate, frame_rate, embeddings):
        measured.append([each.name for each in embeddings])
        return measure(made, rate, frame_rate, embeddings)

    monkeypatch.setattr(passages_module, "measure_traits", counted)
    level = Embedding("mean", RATE, lambda parts: parts.mean(1, keepdim=True))
    passages = with_samples(PASSAGES, 2)
    found = compare_passages(passages, RATE, FRAME_RATE, embeddings=[level])
    for key in ("key_kept", "entropy", "chroma_similarity"):
        assert found.intervals(42, 50)[TRUE][key] == table[TRUE][key]
        assert found.separation(42)[key] == separations[key]
    # prompts, which no measure embeds; then true, generated, and two of each control
    assert measured == [[]] * 16 + [["mean"]] * 16 * (1 + 1 + 2 * 3)


def test_area_under_the_curve():
    assert area_under_curve([3, 4], [1, 2], "high") == 1
    assert area_under_curve([3, 4], [1, 2], "low") == 0
    assert area_under_curve([3, 4], [1, 2], "near true") == 1
    assert area_under_curve([1, 3], [2, 2], "near true") == 0.5
    assert area_under_curve([1, 2], [2, math.nan], "low") == 0.75
    assert math.isnan(area_under_curve([math.nan], [1], "low"))


def test_every_measure_says_what_it_is():
    for measure in MEASURES.values():
        assert measure.better in ("low", "high", "near true")
        assert measure.about.endswith(".")
        assert measure.format.format(0.5)
