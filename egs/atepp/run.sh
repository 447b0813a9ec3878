#!/usr/bin/env bash
# The whole recipe: prepare, train, continue. See prepare.sh for the folders it expects.
#
# Run it from the repository root; `bash -x` shows each command as it is run, ready to be copied.
set -eou pipefail

stage=0
stop_stage=3
prepare=egs/atepp/prepare.sh
joint=true              # true: both halves together (stage 1); false: AR (1), then NAR (2)
exp_dir=exp/audio-lm
manifest_dir=data/tokenized
dl_dir=download
codec=facebook/encodec_32khz
num_epochs=20           # of the joint training, or of each half
max_duration=150        # seconds of sound a batch: lower it if the GPU's memory is short
dtype=bfloat16
prompts=                # files to continue, a line each; empty: the first test recordings
num_prompts=3           # of the test recordings

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh

train() {
  python egs/atepp/bin/trainer_audiolm.py \
    --model-name audio-lm --decoder-dim 1024 --nhead 16 --num-decoder-layers 12 \
    --base-lr 0.05 --exp-dir "$exp_dir" --max-duration "$max_duration" --dtype "$dtype" \
    --filter-min-duration 5 --filter-max-duration 15 --manifest-dir "$manifest_dir" \
    --init-embeddings-from-codec "$codec" "$@"
}

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: recordings to tokens"
  PYTHON=python bash "$prepare" --dl-dir "$dl_dir" --output-dir "$manifest_dir" \
    --codec "$codec"
fi

. egs/atepp/shared/train_halves.sh

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  limit=-1
  if [ -z "$prompts" ]; then
    limit=$num_prompts
    prompts=$(
      python - "$manifest_dir" << 'PYTHON'
import sys
from valle.data import load_cuts
from valle.data.manifest import manifest_path
cuts = load_cuts(manifest_path(sys.argv[1], "test"))
files = (cut.recording.sources[0].source for cut in cuts)
print(*dict.fromkeys(files), sep="\n")
PYTHON
    )
  fi
  files=()
  missing=()
  while IFS= read -r file; do
    if [ -z "$file" ]; then continue; fi
    if [ "${#files[@]}" -eq "$limit" ]; then break; fi
    if [ -f "$file" ]; then files+=("$file"); else missing+=("$file"); fi
  done <<< "$prompts"
  if [ "${#missing[@]}" -gt 0 ]; then
    log "Stage 3: ${#missing[@]} files to continue are not there and are left out: ${missing[0]} ..."
  fi
  if [ "${#files[@]}" -eq 0 ]; then
    log "No file to continue: bring the test recordings back, or name others, a line each: --prompts"
    exit 1
  fi
  log "Stage 3: continue ${files[*]}"
  python egs/atepp/bin/infer_audiolm.py --checkpoint "$exp_dir/best-valid-loss.pt" \
    --audio-prompts "${files[@]}" --prompt-duration 5 --max-duration 10 --codec "$codec" \
    --output-dir "$exp_dir/continuations"
  log "Watch it: tensorboard --logdir $exp_dir"
fi
