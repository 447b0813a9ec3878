#!/usr/bin/env bash
# MIDI to sound: prepare recordings with their MIDI, train VALL-E on it, play test pieces, measure.
# See prepare.sh for the folders it expects.
#
# Run it from the repository root: egs/atepp/run_midi.sh [--dl-dir ...]; --help lists the options.
set -eou pipefail

stage=0
stop_stage=4
joint=true              # true: both halves together (stage 1); false: AR (1), then NAR (2)
exp_dir=exp/atepp-midi
manifest_dir=data/atepp-midi
dl_dir=download
audio_dir=              # recordings; default: $dl_dir/recordings
midi_dir=               # their MIDI, at the same paths; default: $dl_dir/ATEPP-1.2
codec=facebook/encodec_32khz
device=auto             # of the tokenizer
window=20               # seconds of an excerpt at most; they have min_window at least, where a
min_window=15           # recording can be cut so
decoder_dim=1024
nhead=16
num_decoder_layers=12
prefix_mode=1
num_epochs=20           # of the joint training, or of each half
max_duration=150        # seconds of sound a batch: lower it if the GPU's memory is short
dtype=bfloat16
num_pieces=3            # of the test recordings, to be played
num_passages=64         # of the test recordings, made of their notes and measured
prompt_duration=3       # seconds of a test recording that are heard, for its sound
passage_duration=6      # seconds of a passage that are made after that

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh
audio_dir=${audio_dir:-$dl_dir/recordings}
midi_dir=${midi_dir:-$dl_dir/ATEPP-1.2}

train() {
  python egs/atepp/bin/trainer.py --model-name valle --condition midi \
    --prefix-mode "$prefix_mode" --decoder-dim "$decoder_dim" --nhead "$nhead" \
    --num-decoder-layers "$num_decoder_layers" --base-lr 0.05 --exp-dir "$exp_dir" \
    --max-duration "$max_duration" --dtype "$dtype" --filter-max-duration "$window" \
    --manifest-dir "$manifest_dir" --init-embeddings-from-codec "$codec" "$@"
}

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: recordings to tokens, each excerpt with its notes"
  PYTHON=python bash egs/atepp/prepare.sh --dl-dir "$dl_dir" --audio-dir "$audio_dir" \
    --midi-dir "$midi_dir" --output-dir "$manifest_dir" --codec "$codec" --device "$device" \
    --window "$window" --min-window "$min_window"
fi

. egs/atepp/shared/train_halves.sh

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  # into a variable first: set -e does not see a failure inside < <( )
  found=$(python egs/atepp/local/held_out_midi.py --manifest-dir "$manifest_dir" \
    --audio-dir "$audio_dir" --midi-dir "$midi_dir" --num-pieces "$num_pieces")
  midi=()
  sound=()
  while IFS= read -r file && IFS= read -r other; do
    midi+=("$file")
    sound+=("$other")
  done <<< "$found"
  log "Stage 3: play ${midi[*]}, each in the sound of its own recording"
  python egs/atepp/bin/infer.py --checkpoint "$exp_dir/best-valid-loss.pt" --codec "$codec" \
    --midi "${midi[@]}" --audio-prompts "${sound[@]}" --midi-prompts "${midi[@]}" \
    --prompt-duration "$prompt_duration" --output-dir "$exp_dir/played"
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  log "Stage 4: how well it follows the notes"
  python egs/atepp/bin/evaluate.py --checkpoint "$exp_dir/best-valid-loss.pt" --codec "$codec" \
    --manifest-dir "$manifest_dir" --parts condition likelihood --num-prompts "$num_passages" \
    --prompt-duration "$prompt_duration" --max-duration "$passage_duration"
  log "Listen: $exp_dir/played/*.wav. Read, look and listen: $exp_dir/evaluation/report.html;"
  log "the training: tensorboard --logdir $exp_dir"
fi
