#!/usr/bin/env bash
# Recordings -> codec tokens -> checked token manifests.
#
# What you bring (the audio of ATEPP is not distributed, see README.md):
#
#   download/
#   ├── ATEPP-1.2-clean.csv             optional: its column `split` decides the splits
#   └── recordings/                     wav, flac, ogg or mp3, folders as you like
#       └── <composer>/<piece>/00001.flac   named like the column `midi_path` of the table
#
# What you get, all of it safe to delete:
#
#   data/tokenized/
#   ├── cuts_train.jsonl.gz  cuts_validation.jsonl.gz  cuts_test.jsonl.gz
#   ├── tokens/<recording>.npy
#   └── tokenizer.json  work.jsonl  .tokenize.done  .validate.done
#
# Run it from the repository root: egs/atepp/prepare.sh [--stage 0] [--stop-stage 2] [--src-dir ...]
set -eou pipefail

stage=0
stop_stage=2
dl_dir=download
src_dir=                # recordings; default: $dl_dir/recordings
split_csv=auto          # auto: $dl_dir/ATEPP-1.2-clean.csv if it is there; none: draw the splits
csv_file_column=midi_path
csv_split_column=split
valid_fraction=0.1      # of the recordings, where no table says
test_fraction=0.1
seed=42
output_dir=data/tokenized
codec=facebook/encodec_32khz
window=15
min_window=5
min_duration=1
device=auto
num_workers=2
python=${PYTHON:-python3}

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$_here/shared/parse_options.sh"
. "$_here/shared/log.sh"

src_dir=${src_dir:-$dl_dir/recordings}
if [ "$split_csv" = auto ]; then
  split_csv=none
  if [ -f "$dl_dir/ATEPP-1.2-clean.csv" ]; then split_csv=$dl_dir/ATEPP-1.2-clean.csv; fi
fi

# A stage is done when its marker holds the settings of this run, and no input is newer.
is_done() {
  local inputs=("$src_dir")
  if [ "$split_csv" != none ]; then inputs+=("$split_csv"); fi
  [ -f "$1" ] && [ "$(cat "$1")" = "$settings" ] &&
    [ -z "$(find "${inputs[@]}" -type f -cnewer "$1" -print -quit)" ]
}
settings="$src_dir $split_csv $csv_file_column $csv_split_column $valid_fraction $test_fraction \
$seed $codec $window $min_window $min_duration $( (find "$src_dir" -type f 2> /dev/null || true) | wc -l)"

# The valle of this clone is used even where the package is not installed.
export PYTHONPATH="$_here/../..${PYTHONPATH:+:$PYTHONPATH}"

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: look for recordings in $src_dir"
  if [ ! -d "$src_dir" ]; then
    log "There is no folder $src_dir. Put your recordings there (see the head of $0), or say where"
    log "they are: --src-dir. To try the recipe without any: egs/minipiano/run.sh"
    exit 1
  fi
  num_files=$(find "$src_dir" -type f \( -iname '*.wav' -o -iname '*.flac' -o -iname '*.ogg' \
    -o -iname '*.mp3' \) | wc -l | tr -d ' ')
  log "$num_files recordings; splits: $split_csv"
  if [ "$num_files" -eq 0 ]; then
    log "No wav, flac, ogg or mp3 file below $src_dir"
    exit 1
  fi
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: tokenise into $output_dir with $codec"
  if is_done "$output_dir/.tokenize.done"; then
    log "done before (remove $output_dir/.tokenize.done to do it again)"
  else
    table=()
    if [ "$split_csv" != none ]; then
      table=(--split-csv "$split_csv" --csv-file-column "$csv_file_column"
        --csv-split-column "$csv_split_column")
    fi
    "$python" "$_here/bin/tokenizer.py" --src-dir "$src_dir" --output-dir "$output_dir" \
      --codec "$codec" --window "$window" --min-window "$min_window" \
      --min-duration "$min_duration" --valid-fraction "$valid_fraction" \
      --test-fraction "$test_fraction" --seed "$seed" --device "$device" \
      --num-workers "$num_workers" ${table[@]+"${table[@]}"}
    echo "$settings" > "$output_dir/.tokenize.done"
  fi
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: check the manifests in $output_dir"
  if is_done "$output_dir/.validate.done" &&
    [ ! "$output_dir/.tokenize.done" -nt "$output_dir/.validate.done" ]; then
    log "done before (remove $output_dir/.validate.done to do it again)"
  else
    "$python" "$_here/local/validate_manifests.py" --manifest-dir "$output_dir"
    echo "$settings" > "$output_dir/.validate.done"
  fi
fi
