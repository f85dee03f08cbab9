#!/usr/bin/env bash
# One Cloud TPU slice with one or many hosts: create it, set it up, train, delete it.
#
#   export NAME=dpo-1 ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh setup
#   launch/tpu_vm.sh train --config=configs/paired.py:dpo --config.model.path=mistralai/Mistral-7B-v0.1
#   launch/tpu_vm.sh delete
#
# Needs the gcloud command, logged in, with a project set, and a bucket with a hierarchical namespace (launch/README.md).
# `setup` copies the committed state of this clone to every host; run it again after a change.
# `train` may be run again at any time: it goes on from the last checkpoint in gs://BUCKET/runs/NAME.
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}
[ "$#" -ge 1 ] || usage
verb=$1
shift
: "${NAME:?name of the TPU}" "${ZONE:?its zone}"
TYPE=${TYPE:-v5litepod-16}
# The software image of the TPU generation: v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e).
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
repository=$(cd "$(dirname "$0")/.." && pwd)

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

case $verb in
create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$RUNTIME"
    ;;
setup)
    : "${BUCKET:?bucket for checkpoints}"
    archive=$(mktemp -d)/jaxalign.tar.gz
    git -C "$repository" archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:" --zone="$ZONE" --worker=all
    # The image's own Python may be older than 3.11; uv brings one. The bucket is where all hosts meet.
    on_all_hosts "$(
        cat <<REMOTE
set -eu
mkdir -p jaxalign bucket
tar -xzf jaxalign.tar.gz -C jaxalign
python3 -m pip install --quiet --user uv
cd jaxalign
python3 -m uv venv --quiet --clear --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
if ! command -v gcsfuse >/dev/null; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -qq -y gcsfuse
fi
mountpoint -q ~/bucket || gcsfuse --implicit-dirs '$BUCKET' ~/bucket
REMOTE
    )"
    ;;
train)
    # exec: a SIGTERM of the host reaches the program itself.
    on_all_hosts "cd jaxalign && exec .venv/bin/jaxalign train $(printf '%q ' "$@") --workdir=../bucket/runs/$NAME --distributed"
    ;;
delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
    ;;
*)
    usage
    ;;
esac
