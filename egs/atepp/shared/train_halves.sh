# Stages 1 and 2 of a recipe: both halves together, or the AR half and then the NAR half.
#
# To be sourced by a recipe that has a function `train`, which hands its arguments on to the trainer,
# and that has set stage, stop_stage, joint and num_epochs.
# shellcheck shell=bash disable=SC2154

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  if [ "$joint" = true ]; then
    log "Stage 1: train both halves together"
    train --train-stage 0 --num-epochs "$num_epochs"
  else
    log "Stage 1: train the AR half"
    train --train-stage 1 --num-epochs "$num_epochs"
  fi
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ] && [ "$joint" != true ]; then
  log "Stage 2: train the NAR half, from epoch $num_epochs of the AR half on"
  train --train-stage 2 --start-epoch $((num_epochs + 1)) --num-epochs $((2 * num_epochs))
fi
