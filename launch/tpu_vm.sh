#!/usr/bin/env bash
# launch/tpu_vm.sh NAME ZONE NFS --config configs/vigor_all_7b.yaml --run.dir /mnt/shared/runs/all ...
# Runs the same command on every host of a TPU pod VM. NFS is a file share (SERVER:/PATH), mounted as /mnt/shared, for
# the checkpoint, the run and the annotations; images may be in a bucket. What was stopped or preempted continues when this
# is run again. A TPU host has no GPU, so the detector is elsewhere: give --detection.model null and
# --detection.addresses HOST:50051.
set -euo pipefail
if [ "$#" -lt 4 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 share=$3
shift 3
on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all --command "$1"; }

source=$(mktemp --suffix .tar.gz)
trap 'rm -f "$source"' EXIT
git -C "$(dirname "$0")/.." archive --format tar.gz --output "$source" HEAD
gcloud compute tpus tpu-vm scp "$source" "$name:vigor-jax.tar.gz" --zone "$zone" --worker all
on_all_hosts "set -e
  mkdir -p vigor-jax && tar -xzf vigor-jax.tar.gz -C vigor-jax
  test -d venv || python3 -m venv venv
  venv/bin/pip install --quiet -e 'vigor-jax[tpu]' gcsfs
  sudo mkdir -p /mnt/shared
  mountpoint -q /mnt/shared || { sudo apt-get install -qq -y nfs-common && sudo mount -t nfs $share /mnt/shared; }"
on_all_hosts "cd vigor-jax && ../venv/bin/python -m vigor_jax.train $(printf '%q ' "$@")"
