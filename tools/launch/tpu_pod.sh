#!/usr/bin/env bash
# Trains on all workers of a TPU pod slice: copies this checkout, installs it, and starts the same command on each.
#
#   TPU=my-pod ZONE=us-central2-b tools/launch/tpu_pod.sh --config=configs/siglip2_qwen3.py --workdir=gs://bucket/runs/mine
#
# Needs gcloud. The workdir must be one that all workers see. Started again, the run goes on.
set -euo pipefail

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:jaxmm.tar.gz" --zone="$ZONE" --worker=all
on_all "mkdir -p jaxmm && tar -xzf jaxmm.tar.gz -C jaxmm && cd jaxmm &&
  python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu,gcs]'"
on_all "cd jaxmm && JAXMM_DISTRIBUTED=1 .venv/bin/python -m jaxmm.train $(printf '%q ' "$@")"
