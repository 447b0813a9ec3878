#!/usr/bin/env bash
# The whole recipe on MAESTRO v3: egs/atepp/run.sh, its model and its stages, with other folders.
#
# Run it from the repository root: egs/maestro/run.sh [--dl-dir ...]; --help lists the options.
set -eou pipefail

_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$_here/../atepp/run.sh" --prepare egs/maestro/prepare.sh \
  --manifest-dir data/maestro --exp-dir exp/maestro "$@"
