#!/usr/bin/env bash
# log MESSAGE: says it with the time, and the script and line that speak, as icefall's recipes do.
log() {
  echo "$(date '+%Y-%m-%d %H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}) $*"
}
