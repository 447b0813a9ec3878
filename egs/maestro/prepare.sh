#!/usr/bin/env bash
# MAESTRO v3 -> codec tokens -> checked token manifests: egs/atepp/prepare.sh with MAESTRO's names.
#
# What you bring, the unpacked maestro-v3.0.0.zip (README.md says where it is from):
#
#   download/
#   └── maestro-v3.0.0/
#       ├── maestro-v3.0.0.csv          its column `split` decides the splits
#       └── 2004/ 2006/ ... 2018/       *.wav, beside them *.midi, which are not read
#
# What you get lies in data/maestro, and is safe to delete.
#
# Run it from the repository root: egs/maestro/prepare.sh [--dl-dir ...]; all options are those of
# egs/atepp/prepare.sh (--help), and what you give goes before what is set here.
set -eou pipefail

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$_here/../atepp/prepare.sh" --corpus maestro --audio-name maestro-v3.0.0 \
  --table-name maestro-v3.0.0/maestro-v3.0.0.csv --csv-file-column audio_filename \
  --csv-group-column canonical_composer,canonical_title --output-dir data/maestro "$@"
