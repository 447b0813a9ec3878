"""An evaluation as sections of a page, and as Markdown."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import evaluation_gaps
from evaluation_condition_report import condition_sections
from evaluation_curves import draw_likelihood, draw_training, loss_curves
from evaluation_json import Evaluation
from evaluation_likelihood import Scores
from evaluation_passages import Made, gap_of
from evaluation_players import Player, Row, listening
from evaluation_sounds import Sounds
from evaluation_subject import Subject
from evaluation_tables import (
    condition_costs_table,
    gap_costs_table,
    gap_table,
    measure_table,
    position_table,
    prompt_table,
    quantizer_table,
    separation_table,
    titled,
)
from run_settings import events_folder

from valle.evaluation import Measure
from valle.utils import tables
from valle.utils.html import Section
from valle.utils.tables import Table

INTERVALS = (
    "Each cell: the mean, and in brackets where 95 % of the means lie when recordings are drawn "
    "anew; of one recording the mean alone."
)
DIRECTIONS = {
    "low": "Lower is better.",
    "high": "Higher is better.",
    "near true": "Best as near as can be to the true sound's.",
}


def as_markdown(sections: Sequence[Section]) -> str:
    """What can be printed of the sections."""
    parts = []
    for section in sections:
        filled = [tables.as_markdown(table) for table in section.tables if table.rows]
        if filled:
            parts += [f"## {section.title}", *filter(None, [section.note]), *filled]
    return "\n\n".join(parts)


def sections_of(
    evaluation: Evaluation, content: Mapping[str, Any], with_pictures: bool
) -> list[Section]:
    """All sections, in the order of the page."""
    sections = [facts_section(content)]
    if evaluation.sounds is not None:
        sections += sound_sections(evaluation.sounds, with_pictures)
    if evaluation.followed is not None:
        sections += condition_sections(evaluation.followed, with_pictures)
    if evaluation.scores is not None:
        has_prompt = evaluation.subject.model.config.condition != "text"
        sections += likelihood_sections(evaluation.scores, has_prompt)
    return [*sections, *training_sections(evaluation.subject)]


def facts_section(content: Mapping[str, Any]) -> Section:
    """What was evaluated, and how to do so again."""
    checkpoint, settings, facts = content["checkpoint"], content["settings"], content["facts"]
    environment, codec = facts["environment"], checkpoint["codec"] or {}
    changed = ", with changes" if environment["git-dirty"] else ""
    rows = {
        "checkpoint": checkpoint["path"],
        "sha256": checkpoint["sha256"],
        "trained for": f"{checkpoint['epoch']} epochs, {checkpoint['step']} steps",
        "parameters": f"{checkpoint['num_parameters']:,}",
        "codec": f"{codec.get('name')}, fingerprint {codec.get('fingerprint')}",
        "data": f"{settings['split']} cuts of {settings['manifest_dir']}",
        "likelihood on": _scored_cuts(content),
        "sound from": _passages(facts),
        "sampling": _sampling(settings) if {"sounds", "condition"} & content.keys() else None,
        "seed, weights as": f"{settings['seed']}, {settings['dtype']}",
        "code": f"{environment['git-sha1']}{changed}",
        "torch": environment["torch-version"],
    }
    table = Table(["what", "which"], [[name, str(value)] for name, value in rows.items() if value])
    body = f"<pre><code>{html.escape(content['command'])}</code></pre>"
    return Section("What was evaluated", "", [table], body=body, in_words=True)


def _scored_cuts(content: Mapping[str, Any]) -> str | None:
    facts = content.get("likelihood", {}).get("facts")
    return facts and f"{facts['cuts']} of {facts['cuts_in_split']} cuts, {facts['hours']:.3f} h"


def _passages(facts: Mapping[str, Any]) -> str | None:
    found = facts.get("passages")
    return found and (
        f"{found['passages']} of {found['long_enough']} passages that are long enough "
        f"(in {found['cuts_in_split']} cuts), of {found['recordings']} recordings"
    )


def _sampling(settings: Mapping[str, Any]) -> str:
    names = ("temperature", "top_k", "top_p", "min_p", "nar_temperature", "num_samples")
    words = [f"{name.replace('_', ' ')} {settings[name]:g}" for name in names]
    if settings["repetition_aware_sampling"]:
        words.append("repetition-aware")
    return ", ".join(words)


def sound_sections(sounds: Sounds, with_pictures: bool) -> list[Section]:
    """Measures, what tells them apart, gaps, and players."""
    sections = [
        Section(
            "Generated sound beside the true one",
            f"{INTERVALS} True sound is decoded from its codes, too, so that the codec's loss "
            "counts against nobody.",
            [measure_table(sounds.rows, sounds.measures)],
            body=_about_measures(sounds.measures),
        ),
        Section(
            "What the measures can tell",
            "How often a true passage scores better than one of a control: 1 is always, and where "
            "it is 0.5 the measure cannot tell them apart; where near true is best, the better of "
            "both directions counts, so that chance lies above 0.5 with few passages. Of a Fréchet "
            "distance, which is of all passages at once: how many times the true sound's it is. A "
            "dash: nothing to measure, as of likeness within a recording where each has but one "
            "passage.",
            [separation_table(sounds.separation, sounds.measures)],
        ),
    ]
    if sounds.gaps:
        note = (
            "The middle third of each passage, made anew from what is around it. A joint is abrupt "
            "where the sound changes more than at 95 % of the places in the true passages, so that "
            f"5 % is chance. {INTERVALS}"
        )
        table = gap_table(sounds.gaps, evaluation_gaps.MEASURES)
        sections.append(Section("Gaps that were filled", note, [table]))
    rate = sounds.stage.codec.sampling_rate
    rows = [
        listening_row(made, sounds.stage.sizes[0] / sounds.stage.codec.frame_rate, rate)
        for made in sounds.made[: sounds.num_shown]
    ]
    note = (
        "Spectrograms of a row share one scale. A line stands where the prompt ends and the model, "
        "or the true music, goes on; in an in-filled passage two lines enclose what was made."
    )
    sections.append(Section("Listen", note, body=listening(rows, rate, with_pictures)))
    return sections


def _about_measures(measures: Mapping[str, Measure]) -> str:
    """What each measure says, as a list."""
    items = (
        f"<div><dt>{html.escape(titled(measure))}</dt>"
        f"<dd>{html.escape(measure.about)} {DIRECTIONS[measure.better]}</dd></div>"
        for measure in measures.values()
    )
    return f"<dl>{''.join(items)}</dl>"


def listening_row(made: Made, prompt_sec: float, sampling_rate: int) -> Row:
    """All that can be heard of a passage."""
    players = [Player("prompt", made.passage.prompt), Player("true", made.true, [prompt_sec])]
    players += [
        Player(_numbered("generated", i, len(made.samples)), sound, [prompt_sec])
        for i, sound in enumerate(made.samples)
    ]
    gap = gap_of(len(made.true))
    marks = [gap.start / sampling_rate, gap.stop / sampling_rate]
    players += [
        Player(_numbered("in-filled", i, len(made.infilled)), sound, marks)
        for i, sound in enumerate(made.infilled)
    ]
    return Row(made.passage.name, players)


def _numbered(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name} {index + 1}"


def likelihood_sections(scores: Scores, has_prompt: bool) -> list[Section]:
    """What true audio costs: the continuation of a prompt, or all of it where there is none."""
    scored = (
        "the true continuation of a prompt" if has_prompt else "true audio, from its beginning,"
    )
    beginning = "the prompt" if has_prompt else "the beginning"
    sections = [
        Section(
            "Likelihood",
            f"What {scored} costs, in nats a frame for each quantizer, and "
            "in brackets how often the likeliest code was the true one. N-grams, counted on the "
            "training cuts, score the same frames. Lower cost is better.",
            [quantizer_table(scores)],
        )
    ]
    if scores.by_condition:
        sections.append(
            Section(
                "What the condition is worth",
                "The same frames, if the model is told of them, and if it is told of another "
                "recording in their place. What it gains by the truth is what it uses.",
                [condition_costs_table(scores)],
            )
        )
    if scores.by_position:
        sections.append(
            Section(
                "Where in the continuation" if has_prompt else "Where in the audio",
                f"By how far after {beginning} a frame lies.",
                [position_table(scores, "continuation" if has_prompt else "audio")],
                lambda: draw_likelihood(scores.by_position, f"seconds after {beginning}"),
            )
        )
    if scores.by_prompt:
        sections.append(
            Section(
                "How long the prompt",
                "The same frames, those after the longest of these prompts, after each of them.",
                [prompt_table(scores)],
                lambda: draw_likelihood(scores.by_prompt, "seconds of prompt"),
            )
        )
    if scores.gaps:
        sections.append(
            Section(
                "What gaps cost",
                "The true content of gaps in the middle of the cuts, if the model knows both "
                "sides; if what follows is of another piece; and if it knows the frames before "
                "alone, as when it continues. Then the same of the end of each gap.",
                [gap_costs_table(scores)],
            )
        )
    return sections


def training_sections(subject: Subject) -> list[Section]:
    """The curves of the run, if it left any beside its checkpoint."""
    folder = events_folder(subject.path.parent, subject.checkpoint.get("train_stage") or 0)
    curves = loss_curves(folder)
    if not curves:
        return []
    note = "Loss of each quantizer over the run; dotted: in training."
    return [Section("Training", note, draw=lambda: draw_training(curves))]
