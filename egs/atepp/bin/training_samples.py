"""Continuations of validation cuts, to be heard and seen in tensorboard while training."""

from itertools import islice

import torch
from training_run import Run

from valle.data import collate_codes, cut_codes, split_prompt
from valle.models import TrainStage
from valle.utils.plot import spectrogram_figure

TOP_K = 50


@torch.no_grad()
def write_samples(run: Run) -> None:
    """Continue the first validation cuts, to be heard and seen in tensorboard."""
    assert run.writer is not None
    assert run.codec is not None
    params, step = run.params, run.params.batch_idx_train
    cuts = [cut_codes(cut) for cut in islice(run.valid_cuts, params.num_samples)]
    x, x_lens, y, y_lens = split_prompt(*collate_codes(cuts), params.prompt_ratio)
    generator = torch.Generator(run.device).manual_seed(params.seed)
    generated, lens = run.model.inference(
        x.to(run.device),
        x_lens.to(run.device),
        max_new_tokens=int(y_lens.max()),
        top_k=TOP_K,
        generator=generator,
        return_lens=True,
    )
    # an untrained NAR half makes noise: the first quantizer alone is coarse, but music
    num_levels = 1 if run.stage == TrainStage.AR else x.shape[2]
    sounds, sound_lens = run.codec.decode(generated[:, :, :num_levels], lens)
    truths, truth_lens = run.codec.decode(*collate_codes(cuts))
    for i in range(len(cuts)):
        prompt_len = int(x_lens[i]) * run.codec.hop_length
        true, made = truths[i, : truth_lens[i]], sounds[i, : sound_lens[i]]
        parts = {"prompt": true[:prompt_len], "true": true, "generated": made}
        for name, sound in parts.items():
            tag = f"sample_{i + 1}/{name}"
            run.writer.add_audio(tag, sound.clamp(-1, 1)[None], step, run.codec.sampling_rate)
        mark = prompt_len / run.codec.sampling_rate
        figure = spectrogram_figure(
            {"true": true, "generated": made},
            run.codec.sampling_rate,
            {"true": mark, "generated": mark},
        )
        run.writer.add_figure(f"sample_{i + 1}/spectrograms", figure, step)
