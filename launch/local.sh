#!/usr/bin/env bash
# Several processes of one run on this machine: a rehearsal of a multi-host run.
#
#   launch/local.sh 2 jaxalign train --config=configs/paired.py:dpo --workdir=runs/a
#
# On CPU each process simulates DEVICES devices (default 1): DEVICES=4 launch/local.sh 2 ... is a mesh of 8.
# On GPUs, GPUS_PER_PROCESS=2 gives process 0 the GPUs 0,1, process 1 the GPUs 2,3, and so on.
#
# A SIGTERM or Ctrl-C here goes to all of them, so that they save and stop. Once one process dies, the others are stopped.
# The exit code is that of the first process that failed, or 0. Needs bash 5.1.
set -uo pipefail

if [ "$#" -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
processes=$1
shift

port=${PORT:-$((20000 + RANDOM % 20000))}
export JAXALIGN_COORDINATOR_ADDRESS=127.0.0.1:$port JAXALIGN_NUM_PROCESSES=$processes

base_flags=${XLA_FLAGS:-}
pids=()
for ((id = 0; id < processes; id++)); do
    export JAXALIGN_PROCESS_ID=$id
    if [ -n "${GPUS_PER_PROCESS:-}" ]; then
        first=$((id * GPUS_PER_PROCESS))
        JAX_LOCAL_DEVICE_IDS=$(seq -s, "$first" $((first + GPUS_PER_PROCESS - 1)))
        export JAX_LOCAL_DEVICE_IDS
    else
        export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
        export XLA_FLAGS="$base_flags --xla_force_host_platform_device_count=${DEVICES:-1}"
    fi
    # Process 0 speaks; the others only when they fail.
    if [ "$id" -eq 0 ]; then "$@" --distributed & else "$@" --distributed >/dev/null & fi
    pids+=($!)
done

stop() { kill -TERM "${pids[@]}" 2>/dev/null; }
trap stop TERM INT

code=0
left=$processes
while [ "$left" -gt 0 ]; do
    # `wait -n` also returns when a signal arrives; then no process has ended yet.
    wait -n -p ended "${pids[@]}"
    status=$?
    [ -n "${ended:-}" ] || continue
    left=$((left - 1))
    for i in "${!pids[@]}"; do
        if [ "${pids[i]}" = "$ended" ]; then unset 'pids[i]'; fi
    done
    if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
        code=$status
        if [ "$left" -gt 0 ]; then stop; fi
    fi
done
exit "$code"
