#!/usr/bin/env bash
# SwAV over several nodes, in as many turns as it takes:
#     sbatch examples/slurm.sh photos.zip runs/swav --arch resnet50 --epochs 200
# The first turn starts the run, each later one goes on from the last step, with the same command.

#SBATCH --job-name=unfreeze
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4      # one process per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8        # shared by the workers that read and cut images
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120        # a second net: whoever gets USR1 saves and ends with 130 too
#SBATCH --requeue                # the job may be queued again, by SLURM or by the last line
#SBATCH --open-mode=append       # one log for all turns
#SBATCH --output=%x-%j.log

data=$1 out=$2
shift 2

# --time-limit: below the job's --time, so that the last step is saved before SLURM ends the job.
# --kill-on-bad-exit=0: the first process to leave must not take the others' exit code away.
srun --kill-on-bad-exit=0 python -m unfreeze pretrain "$data" --out "$out" \
    --resume auto --time-limit 3h50m "$@"
status=$?

# 130: interrupted and saved. Anything else is an end, good or bad.
if [ "$status" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
