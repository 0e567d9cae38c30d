#!/bin/bash
# Slurm: nanoGPT over two nodes, compressed. `srun` starts one `torchrun` a node, and each starts `RANKS_PER_NODE` ranks
# (2 if it is not set; the number of GPUs where there are some). All nodes need this folder and the same Python
# environment. The job's log ends with what `nanogpt.py` prints.
#
# $ sbatch examples/slurm.sh

#SBATCH --job-name=tightgrad
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=00:10:00
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
# Where nodes have several network cards, name the one that joins them: export GLOO_SOCKET_IFNAME=eth0

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${RANKS_PER_NODE:-2}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first_node:${PORT:-29500}" \
    "${SLURM_SUBMIT_DIR:-.}/examples/nanogpt.py" --plan compressed "$@"
