#!/usr/bin/env bash
# Recordings -> codec tokens -> checked token manifests -> a page that shows what they hold.
#
# What you bring (the audio of ATEPP is not distributed, see README.md):
#
#   download/
#   ├── ATEPP-1.2-clean.csv             optional: its column `split` decides the splits
#   └── recordings/                     wav, flac, ogg or mp3, folders as you like
#       └── <composer>/<piece>/00001.flac   named like the column `midi_path` of the table
#
# and, with --midi-dir, a folder with the MIDI of the recordings at the same paths, as ATEPP-1.2 is:
#
#   └── ATEPP-1.2/
#       └── <composer>/<piece>/00001.mid
#
# What you get, all of it safe to delete:
#
#   data/tokenized/
#   ├── cuts_train.jsonl.gz  cuts_validation.jsonl.gz  cuts_test.jsonl.gz
#   ├── tokens/<recording>.npy
#   ├── midi_tokens/<excerpt>.npy       with --midi-dir
#   ├── statistics.html                 hours, durations, use of the codes, levels
#   └── tokenizer.json  recordings.jsonl  .tokenize.done  .validate.done  .statistics.done
#
# Run it from the repository root: egs/atepp/prepare.sh [--stage 0] [--stop-stage 3] [--audio-dir ...]
# Other corpora have scripts that call this one with their own names: egs/maestro/prepare.sh.
set -eou pipefail

stage=0
stop_stage=3
corpus=atepp            # egs/<corpus>/README.md says what to download
dl_dir=download
audio_dir=              # recordings; default: $dl_dir/$audio_name
src_dir=                # the same, under its older name
audio_name=recordings
table_name=ATEPP-1.2-clean.csv
split_csv=auto          # auto: $dl_dir/$table_name if it is there; none: no table
csv_file_column=midi_path
csv_split_column=split  # none: draw the splits, the table names the pieces only
csv_group_column=auto   # auto: composition_id if the table has it; none: pieces are not looked at
split_by=recording      # composition: no piece is in two splits
valid_fraction=0.1      # where splits are drawn
test_fraction=0.1
seed=42
midi_dir=               # MIDI of the recordings, for models that play it: download/ATEPP-1.2, say
output_dir=data/tokenized
codec=facebook/encodec_32khz
window=15
min_window=5
min_duration=1
device=auto
num_processes=1         # several: torchrun shares the recordings among them, a GPU each
# those below are the tokenizer's, and left to it where they are empty: bin/tokenizer.py --help
num_workers=            # threads that read and resample, of each process
num_quantizers=
format=
shard_size=
silence_db=
trim_silence=
max_silence=
max_clipped=
python=${PYTHON:-python3}

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$_here/shared/parse_options.sh"
. "$_here/shared/log.sh"

if [ -n "$audio_dir" ] && [ -n "$src_dir" ] && [ "$audio_dir" != "$src_dir" ]; then
  log "--audio-dir $audio_dir and --src-dir $src_dir name two folders: give one of them"
  exit 2
fi
audio_dir=${audio_dir:-${src_dir:-$dl_dir/$audio_name}}
if [ "$split_csv" = auto ]; then
  split_csv=none
  if [ -f "$dl_dir/$table_name" ]; then split_csv=$dl_dir/$table_name; fi
fi

# The table's flags: those that name the pieces, and with them those that decide the splits.
pieces=()
splits=()
if [ "$split_csv" != none ]; then
  if [ "$csv_group_column" = auto ]; then
    csv_group_column=none
    if [ -f "$split_csv" ] && head -n 1 "$split_csv" | grep -q composition_id; then
      csv_group_column=composition_id
    fi
  fi
  pieces=(--split-csv "$split_csv" --csv-file-column "$csv_file_column")
  if [ "$csv_group_column" != none ]; then pieces+=(--csv-group-column "$csv_group_column"); fi
  splits=("${pieces[@]}" --csv-split-column "$csv_split_column")
fi
splits+=(--split-by "$split_by" --valid-fraction "$valid_fraction"
  --test-fraction "$test_fraction" --seed "$seed")

workers=()  # how fast, not what: no part of the settings below
if [ -n "$num_workers" ]; then workers=(--num-workers "$num_workers"); fi
optional=()
for name in num_quantizers format shard_size silence_db trim_silence max_silence max_clipped; do
  if [ -n "${!name}" ]; then optional+=("--${name//_/-}" "${!name}"); fi
done

# find_files FOLDER [TEST ...]: files and links, which the tokenizer takes for the files they name.
# FOLDER may be a link itself; links to folders in it are not followed, as in the tokenizer.
find_files() {
  find -H "$1" \( -type f -o -type l \) "${@:2}"
}

# is_newer MARKER INPUT: whether a file of the input, or what a link stands for, changed since.
is_newer() {
  [ -n "$(find -H "$2" -cnewer "$1" \( -type f -o -type l \) -print -quit)" ] ||
    # shellcheck disable=SC2016  # the inner shell is to expand them
    [ -n "$(find -H "$2" -type l \
      -exec sh -c 'find -L "$@" -prune -type f -cnewer "$0"' "$1" {} + 2> /dev/null)" ]
}

# A stage is done when its marker holds the settings of this run, and no input is newer.
is_done() {
  [ -f "$1" ] && [ "$(cat "$1")" = "$settings" ] && ! is_newer "$1" "$audio_dir" &&
    { [ -z "$midi_dir" ] || ! is_newer "$1" "$midi_dir"; } &&
    { [ "$split_csv" = none ] || ! is_newer "$1" "$split_csv"; }
}
settings="$audio_dir ${splits[*]} $codec $window $min_window $min_duration ${optional[*]-} \
$( (find_files "$audio_dir" 2> /dev/null || true) | wc -l)"
if [ -n "$midi_dir" ]; then
  optional+=(--midi-dir "$midi_dir")
  settings+=" $midi_dir $( (find_files "$midi_dir" 2> /dev/null || true) | wc -l)"
fi

# The valle of this clone is used even where the package is not installed.
export PYTHONPATH="$_here/../..${PYTHONPATH:+:$PYTHONPATH}"

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: look for recordings in $audio_dir"
  if [ ! -d "$audio_dir" ]; then
    log "There is no folder $audio_dir. egs/$corpus/README.md says what to download and where it"
    log "goes; recordings elsewhere: --audio-dir. To try the recipe without any: egs/minipiano/run.sh"
    exit 1
  fi
  num_files=$(find_files "$audio_dir" \( -iname '*.wav' -o -iname '*.flac' -o -iname '*.ogg' \
    -o -iname '*.mp3' \) | wc -l | tr -d ' ')
  log "$num_files recordings; table of splits: $split_csv"
  if [ "$num_files" -eq 0 ]; then
    log "No wav, flac, ogg or mp3 file below $audio_dir"
    exit 1
  fi
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: tokenise into $output_dir with $codec"
  if is_done "$output_dir/.tokenize.done"; then
    log "done before (remove $output_dir/.tokenize.done to do it again)"
  else
    # Until this stage is done the manifests may be of two runs, which no marker may call checked.
    rm -f "$output_dir"/.{tokenize,validate,statistics}.done
    mkdir -p "$output_dir"
    echo "$settings" > "$output_dir/.tokenize.begun"
    launcher=("$python")
    if [ "$num_processes" -gt 1 ]; then
      launcher=("$python" -m torch.distributed.run --nproc-per-node "$num_processes")
    fi
    "${launcher[@]}" "$_here/bin/tokenizer.py" --src-dir "$audio_dir" --output-dir "$output_dir" \
      --codec "$codec" --window "$window" --min-window "$min_window" \
      --min-duration "$min_duration" --device "$device" "${splits[@]}" \
      ${workers[@]+"${workers[@]}"} ${optional[@]+"${optional[@]}"}
    # the tokenizer writes it last: it says that the manifests are whole
    if [ ! "$output_dir/recordings.jsonl" -nt "$output_dir/.tokenize.begun" ]; then
      log "The tokenizer wrote no manifests into $output_dir: it took itself for one of several"
      log "processes, see above what is not finished. Are RANK and WORLD_SIZE set by something else?"
      exit 1
    fi
    # the time of its beginning stays: a recording that changed meanwhile is newer
    mv "$output_dir/.tokenize.begun" "$output_dir/.tokenize.done"
  fi
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: check the manifests in $output_dir"
  if is_done "$output_dir/.validate.done" &&
    [ ! "$output_dir/.tokenize.done" -nt "$output_dir/.validate.done" ]; then
    log "done before (remove $output_dir/.validate.done to do it again)"
  else
    "$python" "$_here/local/validate_manifests.py" --manifest-dir "$output_dir" \
      ${pieces[@]+"${pieces[@]}"}
    echo "$settings" > "$output_dir/.validate.done"
  fi
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  log "Stage 3: what is in $output_dir"
  if is_done "$output_dir/.statistics.done" && [ -f "$output_dir/statistics.html" ] &&
    [ ! "$output_dir/.tokenize.done" -nt "$output_dir/.statistics.done" ]; then
    log "done before: $output_dir/statistics.html"
  else
    "$python" "$_here/local/statistics_page.py" --manifest-dir "$output_dir" \
      ${pieces[@]+"${pieces[@]}"}
    echo "$settings" > "$output_dir/.statistics.done"
  fi
fi
