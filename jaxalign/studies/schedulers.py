"""Jobs for schedulers: one array over the stages that rows share, one task for each row, and the report."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping

from jaxalign.errors import ConfigError
from jaxalign.studies.plan import Plan
from jaxalign.studies.runner import groups

PARALLEL = 32
"""Tasks of an array that run at once, at most, unless the user changes it."""


def slurm(plan: Plan, *, config: str, workdir: str, distributed: bool = False) -> str:
    """A shell script that submits the study to Slurm.

    Args:
      plan: the study.
      config: its file, as given to ``--config``.
      workdir: its folder, on a file system that all nodes see.
      distributed: whether a task spans several nodes.
    """
    shared, rows = len(groups(plan)), len(plan.rows)
    command = ["study", f"--config={config}", f"--workdir={workdir}"] + (["--distributed"] if distributed else [])
    width = "--nodes=2 --ntasks-per-node=8" if distributed else "--nodes=1 --ntasks-per-node=1"
    logs = shlex.quote(f"{workdir}/logs")
    name = _name(plan)
    text = f"""\
#!/usr/bin/env bash
# The study {plan.study.name} under Slurm: {_count(shared, rows)}.
#
#   bash THIS_FILE
#
# Run it from the root of the clone, with jaxalign[gpu] in .venv on a file system that all nodes see. What is done
# already is found and left alone, so it may be run again at any time. RESOURCES is for each task. A last job writes the
# report.
set -euo pipefail
RESOURCES=${{RESOURCES:-"{width} --gpus-per-node=8 --cpus-per-task=16 --time=12:00:00"}}
REPORT_RESOURCES=${{REPORT_RESOURCES:-"--nodes=1 --ntasks=1 --cpus-per-task=2 --time=00:30:00"}}
PARALLEL=${{PARALLEL:-{min(PARALLEL, max(shared, rows))}}}
mkdir -p {logs}

# submit NAME TASKS PART [SBATCH_FLAG]: prints the id of the array. PART is --shared, or nothing for rows.
submit() {{
    # RESOURCES is several flags.
    # shellcheck disable=SC2086
    TASKS=$2 PART=$3 sbatch --parsable --job-name="$1" --array="0-$(($2 - 1))%$PARALLEL" $RESOURCES ${{4:+"$4"}} \\
        --export=ALL --open-mode=append --requeue --signal=TERM@300 --output={logs}/slurm-%x-%a.log <<'TASK'
#!/usr/bin/env bash
set -uo pipefail
# The batch shell itself must outlive the SIGTERM, to read the exit code.
trap ':' TERM
srun --kill-on-bad-exit=1 .venv/bin/jaxalign {shlex.join(command)} \\
    ${{PART:+"$PART"}} --shard="$SLURM_ARRAY_TASK_ID/$TASKS" &
step=$!
wait "$step"
code=$?
# A signal ends `wait` early: wait again for the step itself.
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done
if [ "$code" -eq 143 ]; then
    # Everything is saved: the same task goes on from there.
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
TASK
}}

"""
    if shared:
        text += f"""\
shared=$(submit {name}-shared {shared} --shared)
echo "shared stages: $shared"
# afterany: a stage that failed fails the rows that need it, and only these.
rows=$(submit {name} {rows} "" "--dependency=afterany:${{shared%%;*}}")
"""
    else:
        text += f'rows=$(submit {name} {rows} "")\n'
    return (
        text
        + f"""\
echo "rows: $rows"
# Gathers the rows from their own files, whoever wrote rows.jsonl last. Failed rows are in it too: afterany.
# shellcheck disable=SC2086
report=$(sbatch --parsable --job-name={name}-report "--dependency=afterany:${{rows%%;*}}" $REPORT_RESOURCES \\
    --output={logs}/slurm-%x.log --wrap={shlex.quote(".venv/bin/jaxalign " + shlex.join(["report", workdir]))})
echo "report: $report"
"""
    )


BUCKET = "/bucket"
"""Where pods see the bucket."""


def gke(plan: Plan, *, config: str, workdir: str, distributed: bool = False) -> str:
    """A JobSet that runs the study on GKE: a job for each group of shared stages, and then one for each row.

    Args:
      plan: the study.
      config: its file, in the image.
      workdir: its folder; a relative one is taken in the bucket that is mounted at /bucket.
      distributed: whether a job has several hosts.

    Raises:
      ConfigError: the folder is not in the bucket, so its results would be lost with the pod.
    """
    workdir = workdir if workdir.startswith("/") else f"{BUCKET}/{workdir}"
    if not workdir.startswith(f"{BUCKET}/"):
        raise ConfigError(
            f"--workdir: got {workdir!r}, where a pod's files are lost when it ends, expected a folder of the bucket: "
            f"a relative one, or one below {BUCKET}."
        )
    shared, rows = len(groups(plan)), len(plan.rows)
    hosts = 4 if distributed else 1
    command = ["jaxalign", "study", f"--config={config}", f"--workdir={workdir}"]
    command += ["--distributed"] if distributed else []
    name = _name(plan)
    text = f"""\
# The study {plan.study.name} on GKE: {_count(shared, rows)} (JobSet API v1alpha2, release 0.8 or later).
#
#   kubectl apply -f THIS_FILE
#   kubectl get jobs -l jobset.sigs.k8s.io/jobset-name={name}
#
# Results go to {workdir} in the bucket. The study's file ({config}) and every local file that it names must be
# in the image or the bucket, at the path that it gives.
#
# To change before use: IMAGE (Python >= 3.11 with `pip install jaxalign[tpu]` and a copy of configs/ as its working
# folder), BUCKET (hierarchical namespace, see launch/README.md), the service account, and the slice of each job:
# accelerator, topology, and with them the number of hosts. Jobs wait until there is a slice for them; a queue such as
# Kueue bounds how many there are. What is done already is found and left alone, so it may be applied again.
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    # One slice is one node pool: never spread the pods of a job over two.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
      # The study itself is wrong: a new start would end the same way. Rows that fail do not end a job.
      - name: wrong-input
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
"""
    if shared:
        text += _replicated("shared", shared, [*command, "--shared"], hosts, after=None)
    text += _replicated("rows", rows, command, hosts, after="shared" if shared else None)
    # Gathers the rows from their own files: without locks, the last writer of rows.jsonl may have missed some.
    return text + _job("report", 1, ["jaxalign", "report", workdir], hosts=1, after="rows", tpu=False)


def _replicated(name: str, count: int, command: list[str], hosts: int, after: str | None) -> str:
    """Jobs that differ in their part of the study alone."""
    # The kubelet puts the variable in: no shell stands between SIGTERM and the program.
    return _job(name, count, [*command, f"--shard=$(JOB_INDEX)/{count}"], hosts=hosts, after=after, tpu=True)


def _job(name: str, count: int, command: list[str], *, hosts: int, after: str | None, tpu: bool) -> str:
    words = "\n".join(f"                    - {json.dumps(word)}" for word in command)
    depends = f"      dependsOn:\n        - name: {after}\n          status: Complete\n" if after else ""
    selector = f"""\
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
                cloud.google.com/gke-tpu-topology: {"4x4" if hosts > 1 else "2x2"}
"""
    ports = """\
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
"""
    limits = "google.com/tpu: 4" if tpu else "memory: 8Gi"
    return f"""\
    - name: {name}
      replicas: {count}
{depends}      template:
        spec:
          completionMode: Indexed
          parallelism: {hosts}
          completions: {hosts}
          backoffLimit: {0 if hosts > 1 else 6}
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: jaxalign
                  operator: In
                  values: [2, 3, 4]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: jaxalign
              # Time between SIGTERM and SIGKILL: enough to save a checkpoint.
              terminationGracePeriodSeconds: 120
{selector if tpu else ""}              containers:
                - name: jaxalign
                  image: IMAGE
                  command:
{words}
                  env:
                    - name: JOB_INDEX
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.labels['jobset.sigs.k8s.io/job-index']
{ports if tpu else ""}                  resources:
                    limits:
                      {limits}
                  volumeMounts:
                    - name: bucket
                      mountPath: /bucket
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: BUCKET
                      mountOptions: implicit-dirs
"""


def _count(shared: int, rows: int) -> str:
    first = f"{shared} task{'s' * (shared > 1)} for what rows share, then " if shared else ""
    return f"{first}{rows} task{'s' * (rows > 1)}, one for each row"


def _name(plan: Plan) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", plan.study.name.lower()).strip("-") or "study"


EMITTERS: Mapping[str, Callable[..., str]] = {"slurm": slurm, "gke": gke}
