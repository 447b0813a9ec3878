#!/usr/bin/env bash
#SBATCH --job-name=atepp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Trains on several machines under SLURM, and goes on in a new job when the time is up. From the
# repository root, which all machines see, after stage 0 of run.sh:
#
#   sbatch egs/atepp/slurm.sh --num-epochs 20
#   sbatch --nodes=8 egs/atepp/slurm.sh --exp-dir exp/large -- --decoder-dim 2048 --fsdp true
#
# What stands after `--` goes to the trainer as it is. It expects and makes:
#
#   data/tokenized/cuts_{train,validation}.jsonl.gz, tokens/    from prepare.sh
#   exp/audio-lm/                                               --exp-dir, where a job goes on
#   atepp-JOB.log                                               what all tasks print
#
# How the end of the time reaches the trainers, 120 s before it:
#
#   SLURM -USR1-> this script -USR1-> srun -USR1-> a shell on each machine -USR1-> its trainers
#
# They save and end; then the job is queued again, and `--resume auto` finds the checkpoint. torchrun
# takes no part: the signal would end it and leave its trainers behind, so it is made to ignore it.
set -eou pipefail

exp_dir=exp/audio-lm
manifest_dir=data/tokenized
num_epochs=20
max_duration=150        # seconds of sound a batch on each GPU
dtype=bfloat16
nproc_per_node=gpu      # trainers on each machine; gpu: as many as it has GPUs
trainer=egs/atepp/bin/trainer_audiolm.py

# SLURM runs a copy of this file from elsewhere, so its own place says nothing
cd "${SLURM_SUBMIT_DIR:-.}"
if [ ! -f egs/atepp/shared/parse_options.sh ]; then
  echo "$PWD is not the repository: submit egs/atepp/slurm.sh from its root" >&2
  exit 2
fi
. egs/atepp/shared/parse_options.sh
. egs/atepp/shared/log.sh
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "this is no SLURM job: submit it with sbatch, or train here with egs/atepp/run.sh" >&2
  exit 2
fi
. ./env.sh

# wait_for PID: returns its status. A signal that is trapped ends `wait` before the process ends.
wait_for() {
  local status=0
  wait "$1" || status=$?
  while kill -0 "$1" 2> /dev/null; do
    status=0
    wait "$1" || status=$?
  done
  return "$status"
}

# run_node COMMAND...: on each machine, torchrun and what brings its trainers the signals. SLURM gives
# them to the first process of a machine alone, and ends the job's part there when that one ends.
run_node() {
  (
    trap '' USR1 # whoever sets no handler ignores it
    exec "$@"
  ) &
  local torchrun=$!
  # shellcheck disable=SC2064  # the number of now
  for name in USR1 TERM; do trap "pkill -$name -P $torchrun || true" "$name"; done
  wait_for "$torchrun"
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# torchrun gives its trainers 30 s when it is told to end; a checkpoint may take longer
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
# newer versions of srun do not take this over from sbatch
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

command=(
  torchrun --nnodes "${#nodes[@]}" --nproc-per-node "$nproc_per_node"
  --rdzv-backend c10d --rdzv-endpoint "${nodes[0]}:$((10000 + SLURM_JOB_ID % 50000))"
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
  "$trainer" --model-name audio-lm --decoder-dim 1024 --nhead 16 --num-decoder-layers 12
  --base-lr 0.05 --exp-dir "$exp_dir" --max-duration "$max_duration" --dtype "$dtype"
  --filter-min-duration 5 --filter-max-duration 15 --manifest-dir "$manifest_dir"
  --train-stage 0 --num-epochs "$num_epochs" --resume auto "$@"
)
log "Job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on ${nodes[*]}"
# a shell on each machine runs the function; in the background, as signals would wait for srun's end
srun --kill-on-bad-exit=1 \
  bash -c "$(declare -f wait_for run_node)"$'\n''run_node "$@"' run_node "${command[@]}" &
srun=$!
time_is_up=false
trap 'time_is_up=true; kill -USR1 "$srun"' USR1
status=0
wait_for "$srun" || status=$?

if [ "$time_is_up" = true ]; then
  log "The time is up: the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
else
  log "Training ended with status $status"
fi
exit "$status"
