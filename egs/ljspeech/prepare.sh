#!/usr/bin/env bash
# LJSpeech-1.1 -> sentences with their texts -> codec tokens and phones -> checked token manifests.
#
# What you bring, the unpacked LJSpeech-1.1.tar.bz2 (README.md says where it is from):
#
#   download/
#   └── LJSpeech-1.1/
#       ├── metadata.csv            id|text|text in words
#       └── wavs/                   LJ001-0001.wav ..., 22,050 Hz, mono
#
# What you get, all of it safe to delete:
#
#   data/ljspeech/
#   ├── sentences.jsonl.gz          a lhotse manifest of the corpus: cuts with texts
#   ├── cuts_train.jsonl.gz  cuts_validation.jsonl.gz  cuts_test.jsonl.gz
#   ├── tokens/<sentence>.npy
#   ├── unique_text_tokens.k2symbols    the ids of the phones
#   └── statistics.html  tokenizer.json  recordings.jsonl
#
# Run it from the repository root: egs/ljspeech/prepare.sh [--stage 0] [--stop-stage 3] [--dl-dir ...]
# Each stage may be stopped and run again; the tokenizer passes over what it has done.
set -eou pipefail

stage=0
stop_stage=3
dl_dir=download
corpus_dir=             # default: $dl_dir/LJSpeech-1.1
output_dir=data/ljspeech
codec=facebook/encodec_24khz
num_quantizers=8        # of the codec's 32: 6 kbit/s, VALL-E's choice
text_extractor=espeak   # characters: no phones, and nothing to install
language=en-us
speaker=LJ
valid_fraction=0.01     # of the sentences; which ones, a hash of the id and the seed decides
test_fraction=0.04
seed=42
device=auto
num_processes=1         # several: torchrun shares the sentences among them, a GPU each
python=${PYTHON:-python3}

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
_atepp="$_here/../atepp"
. "$_atepp/shared/parse_options.sh"
. "$_atepp/shared/log.sh"

corpus_dir=${corpus_dir:-$dl_dir/LJSpeech-1.1}
sentences="$output_dir/sentences.jsonl.gz"

# The valle of this clone is used even where the package is not installed.
export PYTHONPATH="$_here/../..${PYTHONPATH:+:$PYTHONPATH}"

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  log "Stage 0: the sentences of $corpus_dir"
  if [ ! -f "$corpus_dir/metadata.csv" ]; then
    log "There is no $corpus_dir/metadata.csv. egs/ljspeech/README.md says what to download and"
    log "where it goes; the corpus elsewhere: --corpus-dir"
    exit 1
  fi
  "$python" "$_here/local/make_manifest.py" --corpus-dir "$corpus_dir" --output "$sentences" \
    --speaker "$speaker" --language "$language"
fi

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  log "Stage 1: tokenise into $output_dir with $codec; texts as $text_extractor"
  launcher=("$python")
  if [ "$num_processes" -gt 1 ]; then
    launcher=("$python" -m torch.distributed.run --nproc-per-node "$num_processes")
  fi
  quantizers=()
  if [ -n "$num_quantizers" ]; then quantizers=(--num-quantizers "$num_quantizers"); fi
  "${launcher[@]}" "$_atepp/bin/tokenizer.py" --manifest "$sentences" --output-dir "$output_dir" \
    --codec "$codec" ${quantizers[@]+"${quantizers[@]}"} --device "$device" \
    --text-extractor "$text_extractor" --language "$language" \
    --valid-fraction "$valid_fraction" --test-fraction "$test_fraction" --seed "$seed"
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  log "Stage 2: check the manifests in $output_dir"
  "$python" "$_atepp/local/validate_manifests.py" --manifest-dir "$output_dir"
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  log "Stage 3: what is in $output_dir"
  "$python" "$_atepp/local/statistics_page.py" --manifest-dir "$output_dir"
fi
