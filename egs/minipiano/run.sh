#!/usr/bin/env bash
# Generated piano pieces through the whole recipe, start to finish, on a CPU, in minutes.
#
# Needs nothing but Python: no download, no data. All output lands in data/minipiano and
# exp/minipiano, both safe to delete. The scripts are those of egs/atepp.
set -eou pipefail

stage=0
stop_stage=4
minutes=100             # of music
num_epochs=6
infill_prob=0.3         # share of the training cuts with a gap to fill
init_from_codec=true    # false: embeddings start at random, to see what that costs
exp_dir=exp/minipiano
data_dir=data/minipiano
num_prompts=3
num_passages=20         # held-out excerpts whose continuations are measured
window=10               # seconds of an excerpt, and so of what the model learns to keep in view
prompt_duration=4       # seconds of a held-out piece that are given
max_duration=6          # seconds that the model adds; with the prompt no more than it was trained on
dtype=auto              # bfloat16 where the processor computes in it, else float32

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh

. egs/minipiano/shared/settings.sh
tokens=$data_dir/tokenized

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: compose and play $minutes minutes of piano"
  python egs/minipiano/local/make_corpus.py --out-dir "$corpus" --minutes "$minutes"
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: tokenise and check"
  PYTHON=python bash egs/atepp/prepare.sh --src-dir "$corpus" --output-dir "$tokens" \
    --codec "$codec" --split-csv "$corpus/pieces.csv" --csv-file-column file --window "$window"
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: train both halves"
  # too few passes to overfit; with dropout it takes nine for the same loss
  python egs/atepp/bin/trainer_audiolm.py --manifest-dir "$tokens" --exp-dir "$exp_dir" \
    --decoder-dim 192 --nhead 4 --num-decoder-layers 2 --scale-factor 0.5 --all-nar-stages true \
    ${init[@]+"${init[@]}"} --train-stage 0 --prompt-ratio 0.2 --infill-prob "$infill_prob" \
    --num-epochs "$num_epochs" --dropout 0 --max-duration 20 --filter-max-duration "$window" \
    --optimizer-name AdamW --base-lr 0.002 --warmup-steps 50 --dtype "$dtype" \
    --num-workers 1 --log-interval 50 --sample-epochs 5
fi

# as the model says, neither cooler nor cut: at temperature 0.8 among 50 codes pieces fade away
sampling=(--temperature 1 --top-k 0 --nar-temperature 1)

# the first recordings of the test split
prompts=()
while IFS= read -r file; do
  if [ "${#prompts[@]}" -lt "$num_prompts" ]; then prompts+=("$corpus/$file"); fi
done < <(awk -F, '$NF == "test" { print $1 }' "$corpus/pieces.csv")

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  log "Stage 3: continue pieces that the model has never seen"
  # an excerpt should not end
  python egs/atepp/bin/infer_audiolm.py --checkpoint "$exp_dir/best-valid-loss.pt" \
    "${sampling[@]}" --audio-prompts "${prompts[@]}" --prompt-duration "$prompt_duration" \
    --max-duration "$max_duration" --ignore-eos true --output-dir "$exp_dir/continuations"
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  log "Stage 4: how good it is"
  python egs/atepp/bin/evaluate.py --checkpoint "$exp_dir/best-valid-loss.pt" \
    --manifest-dir "$tokens" --num-prompts "$num_passages" --prompt-duration "$prompt_duration" \
    --max-duration "$max_duration" "${sampling[@]}"
  log "Listen: $exp_dir/continuations/*_full.wav. Read, look and listen:"
  log "$exp_dir/evaluation/report.html; the training: tensorboard --logdir $exp_dir"
fi
