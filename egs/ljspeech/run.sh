#!/usr/bin/env bash
# The whole recipe on LJSpeech: prepare, train, speak. See prepare.sh for the folders it expects.
#
# Run it from the repository root: egs/ljspeech/run.sh [--dl-dir ...]; --help lists the options.
set -eou pipefail

stage=0
stop_stage=3
joint=true              # true: both halves together (stage 1); false: AR (1), then NAR (2)
exp_dir=exp/ljspeech
manifest_dir=data/ljspeech
dl_dir=download
codec=facebook/encodec_24khz
text_extractor=espeak   # characters: no phones, and nothing to install
num_epochs=100          # of the joint training, or of each half
max_duration=150        # seconds of sound a batch: lower it if the GPU's memory is short
dtype=bfloat16
text_file=              # sentences to speak, a line each; empty: the first of the test split
num_sentences=3         # of the test split

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh

train() {
  python egs/atepp/bin/trainer.py --model-name valle --condition text --prefix-mode 1 \
    --decoder-dim 1024 --nhead 16 --num-decoder-layers 12 \
    --base-lr 0.05 --exp-dir "$exp_dir" --manifest-dir "$manifest_dir" \
    --max-duration "$max_duration" --dtype "$dtype" --init-embeddings-from-codec "$codec" "$@"
}

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: sentences to tokens and symbols"
  PYTHON=python bash egs/ljspeech/prepare.sh --dl-dir "$dl_dir" --output-dir "$manifest_dir" \
    --codec "$codec" --text-extractor "$text_extractor"
fi

. egs/atepp/shared/train_halves.sh

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  if [ -z "$text_file" ]; then
    text_file=$exp_dir/sentences.txt
    python egs/ljspeech/local/held_out.py --manifest-dir "$manifest_dir" \
      --num-sentences "$num_sentences" > "$text_file"
  fi
  # the voice: a sentence that training has not heard, whole, as its text is
  prompt=$(python egs/ljspeech/local/held_out.py --manifest-dir "$manifest_dir" --prompt true)
  log "Stage 3: speak $text_file in the voice of ${prompt%%$'\n'*}"
  python egs/atepp/bin/infer.py --checkpoint "$exp_dir/best-valid-loss.pt" --codec "$codec" \
    --text-file "$text_file" --audio-prompts "${prompt%%$'\n'*}" \
    --text-prompts "${prompt#*$'\n'}" --output-dir "$exp_dir/spoken"
  log "Watch it: tensorboard --logdir $exp_dir"
fi
