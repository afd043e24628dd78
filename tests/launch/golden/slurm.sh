#!/bin/bash
#SBATCH --job-name=ace-0123456789abcdef
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --chdir="/shared/ace pipeline"
#SBATCH --output="/shared/runs/logs/100%%.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --gpus-per-node=4
#SBATCH --partition=gpu
#SBATCH --account=climate
#SBATCH --time=1-00:00:00
#SBATCH --cpus-per-task=32
result=/shared/runs/logs/ace-0123456789abcdef."$SLURM_JOB_ID".exit
export ACE_STOPPED="$result.stopped"
rm -f "$result" "$ACE_STOPPED"
echo "=== training starts: job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"
module load cuda
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ACE_RENDEZVOUS="$first:$((20000 + SLURM_JOB_ID % 10000))"
export PYTHONUNBUFFERED=1
# srun does not take over what sbatch was asked for.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
cores=${SLURM_CPUS_ON_NODE:-4}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 4 ? cores / 4 : 1))}"

# The shell outlives its step. USR1: the time limit is near.
limit= signalled=
trap 'signalled=1' TERM
trap 'signalled=1; limit=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --nodes=3 --ntasks=3 --ntasks-per-node=1 --kill-on-bad-exit=1 \
  bash -c '
stopped=
trap '"'"'stopped=1'"'"' TERM
ACE_SUPERVISOR_PID=$$ /env/bin/python -m torch.distributed.run --nnodes=3 --nproc-per-node=4 \
  --rdzv-backend=c10d --rdzv-endpoint="$ACE_RENDEZVOUS" --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-conf="is_host=$((SLURM_PROCID == 0))" --shutdown-timeout=15 "$@"
code=$?
[ -z "$stopped" ] || { echo > "$ACE_STOPPED"; code=0; }
exit "$code"
' torchrun -m ace_core.cli train 'my train.yaml' </dev/null &
step=$!
while :; do
  signalled=
  wait "$step"
  code=$?
  [ -n "$signalled" ] || break
done
[ ! -e "$ACE_STOPPED" ] || code=${limit:+124} code=${code:-143}
rm -f "$ACE_STOPPED"
echo "$code" > "$result.tmp" && mv "$result.tmp" "$result"
exit "$code"
