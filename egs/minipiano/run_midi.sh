#!/usr/bin/env bash
# Generated piano pieces made anew from their MIDI: VALL-E with notes in the place of text, start to
# finish, on a CPU, in minutes.
#
# Needs nothing but Python and mido (pip install -e '.[midi]'): no download, no data. The pieces are
# those of run.sh, in the same folder. All output lands in data/minipiano and exp/minipiano-midi,
# both safe to delete. The scripts are those of egs/atepp.
set -eou pipefail

stage=0
stop_stage=4
minutes=100             # of music
num_epochs=12
prefix_mode=1           # the NAR half hears the beginning of the target, whole
init_from_codec=true    # false: embeddings start at random, to see what that costs
exp_dir=exp/minipiano-midi
data_dir=data/minipiano
num_pieces=3            # held-out pieces that are played from their MIDI
num_passages=20         # held-out excerpts that are made of their notes and measured
num_samples=1           # versions of each
window=10               # seconds of an excerpt
prompt_duration=3       # seconds of a held-out piece that are heard, for its timbre
max_duration=7          # seconds that are made; with the prompt no more than it was trained on
dtype=auto              # bfloat16 where the processor computes in it, else float32

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh

. egs/minipiano/shared/settings.sh
tokens=$data_dir/tokenized_midi

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: compose and play $minutes minutes of piano, and keep the notes"
  python egs/minipiano/local/make_corpus.py --out-dir "$corpus" --minutes "$minutes" --midi true
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: sound and notes to tokens, and check them"
  PYTHON=python bash egs/atepp/prepare.sh --src-dir "$corpus" --midi-dir "$corpus" \
    --output-dir "$tokens" --codec "$codec" --split-csv "$corpus/pieces.csv" \
    --csv-file-column file --window "$window"
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: train both halves"
  python egs/atepp/bin/trainer.py --model-name valle --condition midi \
    --prefix-mode "$prefix_mode" --manifest-dir "$tokens" --exp-dir "$exp_dir" \
    --decoder-dim 192 --nhead 4 --num-decoder-layers 2 --scale-factor 0.5 --all-nar-stages true \
    ${init[@]+"${init[@]}"} --train-stage 0 --num-epochs "$num_epochs" --dropout 0.1 \
    --max-duration 20 --filter-max-duration "$window" --optimizer-name AdamW --base-lr 0.002 \
    --warmup-steps 50 --dtype "$dtype" --num-workers 1 --log-interval 50 --sample-epochs 5
fi

# quantizer 1 as the model says, neither cooler nor cut; the others greedily, which hits more notes
sampling=(--temperature 1 --top-k 0 --nar-temperature 0)

# the first recordings of the test split, each with its notes
prompts=()
notes=()
while IFS= read -r file; do
  if [ "${#prompts[@]}" -lt "$num_pieces" ]; then
    prompts+=("$corpus/$file")
    notes+=("$corpus/${file%.flac}.mid")
  fi
done < <(awk -F, '$NF == "test" { print $1 }' "$corpus/pieces.csv")

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  log "Stage 3: play the MIDI of pieces that the model has never heard"
  python egs/atepp/bin/infer.py --checkpoint "$exp_dir/best-valid-loss.pt" "${sampling[@]}" \
    --midi "${notes[@]}" --audio-prompts "${prompts[@]}" --midi-prompts "${notes[@]}" \
    --prompt-duration "$prompt_duration" --output-dir "$exp_dir/played"
fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  log "Stage 4: how well it follows the notes"
  python egs/atepp/bin/evaluate.py --checkpoint "$exp_dir/best-valid-loss.pt" \
    --manifest-dir "$tokens" --parts condition likelihood --num-prompts "$num_passages" \
    --num-samples "$num_samples" --prompt-duration "$prompt_duration" \
    --max-duration "$max_duration" "${sampling[@]}"
  log "Listen: $exp_dir/played/*.wav. Read, look and listen: $exp_dir/evaluation/report.html;"
  log "the training: tensorboard --logdir $exp_dir"
fi
