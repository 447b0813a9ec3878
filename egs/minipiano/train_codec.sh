#!/usr/bin/env bash
# Generated piano -> the small codec of egs/minipiano/codec, from scratch, on a CPU.
#
# All output lands in data/codec-corpus and exp/minipiano-codec, both safe to delete; what is there
# is gone on from. The scripts are those of egs/atepp.
set -eou pipefail

stage=0
stop_stage=2
minutes=60              # of pieces
random_minutes=15       # of notes and chords all over the keyboard
steps_noise=5000
steps_joint=9000
steps_decoder=7000
max_minutes=0           # above 0: a limit for the training, of one process
corpus=data/codec-corpus
exp_dir=exp/minipiano-codec
codec=egs/minipiano/codec
dtype=float32           # bfloat16 is hardly faster on a CPU, and its rounding is noise at -80 dB
world_size=2            # processes, of one thread each
batch_size=10           # crops of half a second, of all processes together
floor_db=-94            # generated piano is really silent between notes; recordings are not
loss_weights="mel=1.5 linear=0.5 waveform=1 fine=0.75"
num_clips=32            # of test pieces, that it is judged on
options=                # further flags of trainer_codec.py

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$_here/../.."
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
. ./env.sh

# split `codec` of the corpus is for a codec alone, and this is one
table=$corpus/codec_splits.csv
splits=(--split-csv "$table" --csv-file-column file)

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: compose and play $minutes minutes of piano, $random_minutes of anything"
  python egs/minipiano/local/make_corpus.py --out-dir "$corpus" --minutes "$minutes" \
    --random-minutes "$random_minutes"
  sed 's/,codec$/,train/' "$corpus/pieces.csv" > "$table"
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: train"
  # shellcheck disable=SC2086 # weights and options are several words
  python egs/atepp/bin/trainer_codec.py --src-dir "$corpus" "${splits[@]}" --exp-dir "$exp_dir" \
    --config "$codec/config.json" --save-dtype float16 --dtype "$dtype" --resume auto \
    --steps-noise "$steps_noise" --steps-joint "$steps_joint" --steps-decoder "$steps_decoder" \
    --max-minutes "$max_minutes" --world-size "$world_size" --num-threads 1 \
    --batch-size "$batch_size" --segment-sec 0.5 --floor-db "$floor_db" \
    --loss-weights $loss_weights --adversarial none $options
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: judge it beside the one in the repository"
  python egs/atepp/bin/eval_codec.py --codecs "$exp_dir/codec" "$codec" --src-dir "$corpus" \
    "${splits[@]}" --output-dir "$exp_dir/scores" --every-level true \
    --num-clips "$num_clips"
fi
