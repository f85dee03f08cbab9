#!/usr/bin/env bash
# A run on spot TPUs: wait in the queue, train, and queue again after each preemption, until the run is done.
#
#   export NAME=dpo-1 ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket
#   launch/tpu_queued_resource.sh --config=configs/paired.py:dpo --config.model.path=mistralai/Mistral-7B-v0.1 \
#       --config.train.checkpoint_every=100
#
# Keep it running (in tmux): it watches the queue. Stopped and started again, it takes up the watch; the TPU goes on alone.
# Every host starts by itself with a start-up script, so nothing is done over ssh. Code and checkpoints travel through
# gs://BUCKET/launch/NAME and gs://BUCKET/runs/NAME; the bucket needs a hierarchical namespace (launch/README.md), and the
# TPU's service account the role roles/storage.objectUser on it. SPOT= (empty) asks for on-demand capacity instead.
# Exits with the run's code: 0, 2, 3 or 4.
set -euo pipefail

if [ "$#" -lt 1 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
: "${NAME:?name of the run}" "${ZONE:?zone}" "${BUCKET:?bucket for code and checkpoints}"
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT---spot}
POLL=${POLL:-60}
repository=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
meeting=gs://$BUCKET/launch/$NAME

git -C "$repository" archive --format=tar.gz --output="$scratch/jaxalign.tar.gz" HEAD

# Runs as root on every host at each start of the TPU. Codes that a new start cannot change end the run; on any other the
# hosts start again together, and go on from the last checkpoint.
cat >"$scratch/startup.sh" <<STARTUP
#!/usr/bin/env bash
set -eu
export HOME=/root
mkdir -p /opt/jaxalign /mnt/bucket
gcloud storage cp '$meeting/jaxalign.tar.gz' /opt/
tar -xzf /opt/jaxalign.tar.gz -C /opt/jaxalign
cd /opt/jaxalign
python3 -m pip install --quiet uv
python3 -m uv venv --quiet --clear --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
if ! command -v gcsfuse >/dev/null; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg >/usr/share/keyrings/cloud.google.asc
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main" >/etc/apt/sources.list.d/gcsfuse.list
    apt-get update -qq
    apt-get install -qq -y gcsfuse
fi
mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs '$BUCKET' /mnt/bucket
for attempt in \$(seq 50); do
    code=0
    .venv/bin/jaxalign train $(printf '%q ' "$@") --workdir=/mnt/bucket/runs/$NAME --distributed || code=\$?
    echo "attempt \$attempt ended with \$code"
    case \$code in
    0 | 2 | 3 | 4)
        echo \$code | gcloud storage cp - "$meeting/exit/\$(hostname)"
        break
        ;;
    esac
    sleep 20
done
STARTUP

state() { gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || true; }
remove() { gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet; }
request() {
    gcloud storage rm --quiet "$meeting/exit/**" 2>/dev/null || true
    gcloud storage cp "$scratch/jaxalign.tar.gz" "$meeting/"
    # SPOT is one flag or nothing.
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" ${SPOT:+"$SPOT"} \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --metadata-from-file=startup-script="$scratch/startup.sh"
}

last=
while true; do
    now=$(state)
    [ "$now" = "$last" ] || echo "$(date -u +%FT%TZ) ${now:-not requested}"
    last=$now
    case $now in
    "")
        request
        ;;
    ACTIVE)
        if codes=$(gcloud storage cat "$meeting/exit/**" 2>/dev/null) && [ -n "$codes" ]; then
            code=$(sort -n <<<"$codes" | tail -n 1)
            echo "the run ended with $code"
            remove
            exit "$code"
        fi
        ;;
    SUSPENDED | FAILED)
        remove
        continue
        ;;
    esac
    sleep "$POLL"
done
