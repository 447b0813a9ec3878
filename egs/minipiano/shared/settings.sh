# What the minipiano recipes have in common: codec, corpus, number format, how embeddings start.
#
# To be sourced when the options have been read: dtype, init_from_codec, data_dir.
# shellcheck shell=bash disable=SC2034,SC2154

codec=egs/minipiano/codec
corpus=$data_dir/corpus
if [ "$dtype" = auto ]; then
  dtype=float32
  if grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo || nvidia-smi > /dev/null 2>&1; then
    dtype=bfloat16
  fi
fi
init=()
if [ "$init_from_codec" = true ]; then init=(--init-embeddings-from-codec "$codec"); fi
