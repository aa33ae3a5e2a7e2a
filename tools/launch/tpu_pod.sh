#!/usr/bin/env bash
# Trains on all workers of a TPU pod slice: copies this checkout, installs it, and starts the same command on each.
#
#   TPU=my-pod ZONE=us-central2-b tools/launch/tpu_pod.sh --config=configs/siglip2_qwen3.py --workdir=/shared/runs/mine
#
# Needs gcloud here, and Python 3.11 or newer on the workers. The workdir must be on a file system that all
# workers have mounted, or in a store (--workdir=gs://BUCKET/FOLDER). Started again, the run goes on.
set -euo pipefail

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:jaxmm.tar.gz" --zone="$ZONE" --worker=all
# The python3 of many TPU images is older than the package needs: take the newest that will do.
# shellcheck disable=SC2016 # expanded on the workers
on_all 'set -e
for python in python3.14 python3.13 python3.12 python3.11 python3 none; do
  if "$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then break; fi
done
if [ "$python" = none ]; then
  echo "error: $(hostname) has no Python 3.11 or newer ($(python3 --version 2>&1)): install one on all workers, as by" \
    "sudo apt-get install python3.11-venv, or make the slice with a newer image" >&2
  exit 1
fi
mkdir -p jaxmm
tar -xzf jaxmm.tar.gz -C jaxmm
cd jaxmm
"$python" -m venv .venv
.venv/bin/pip install --quiet -e ".[tpu,gcs]"'
on_all "cd jaxmm && JAXMM_DISTRIBUTED=1 .venv/bin/python -m jaxmm.train $(printf '%q ' "$@")"
