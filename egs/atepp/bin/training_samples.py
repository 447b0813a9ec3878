"""Continuations of validation cuts, to be heard and seen in tensorboard while training."""

from itertools import islice

from continued_cuts import continue_cuts
from training_run import Run

from valle.utils.plot import spectrogram_figure


def write_samples(run: Run) -> None:
    """Continue the first validation cuts, to be heard and seen in tensorboard."""
    assert run.writer is not None
    assert run.codec is not None
    params, step, rate = run.params, run.params.batch_idx_train, run.codec.sampling_rate
    cuts = list(islice(run.valid_cuts, params.num_samples))
    continued = continue_cuts(run.model, cuts, params.prompt_ratio, params.seed, load=run.load)
    made = continued.made[:, :, : run.num_levels]
    sounds, sound_lens = run.codec.decode(made, continued.made_lens)
    truths, truth_lens = run.codec.decode(continued.true, continued.true_lens)
    for i in range(len(cuts)):
        prompt_len = int(continued.prompt_lens[i]) * run.codec.hop_length
        true, made = truths[i, : truth_lens[i]], sounds[i, : sound_lens[i]]
        parts = {"prompt": true[:prompt_len], "true": true, "generated": made}
        for name, sound in parts.items():
            run.writer.add_audio(f"sample_{i + 1}/{name}", sound.clamp(-1, 1)[None], step, rate)
        mark = prompt_len / rate
        figure = spectrogram_figure(
            {"true": true, "generated": made}, rate, {"true": mark, "generated": mark}
        )
        run.writer.add_figure(f"sample_{i + 1}/spectrograms", figure, step)
