"""What is handed to schedulers: run with stand-ins for sbatch and srun, and read as YAML."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxalign.errors import ConfigError
from jaxalign.evaluation.outcome import Outcome
from jaxalign.studies.plan import Plan, make_plan
from jaxalign.studies.runner import groups, part
from jaxalign.studies.schedulers import gke, slurm
from jaxalign.studies.study import Measure, Stage, Study, Trial


@pytest.fixture
def plan(tmp_path) -> Plan:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    data = {"train": [str(tmp_path / "pairs.jsonl")]}
    model = {"path": str(tmp_path / "model")}
    sft = [
        Stage(name="sft", config={"data": data, "model": model, "method": {"name": "sft"}, "train": {"seed": seed}})
        for seed in (0, 1)
    ]
    trials = tuple(
        Trial(
            labels={"seed": seed, "beta": beta},
            model=Stage(
                name="align",
                config={"data": data, "method": {"name": "dpo", "beta": beta}},
                inputs={"model.path": sft[seed]},
            ),
        )
        for seed in (0, 1)
        for beta in (0.1, 0.2, 0.3)
    )
    measures = (Measure(name="m", run=lambda subject: Outcome(metrics={})),)
    study = Study(name="Two Seeds", question="q", trials=trials, measures=measures, headline="m/x", compare="beta")
    return make_plan(study, tmp_path / "w")


def slurm_tasks(text: str, folder: Path) -> tuple[list[list[str]], list[list[str]], str]:
    """Runs the script with an sbatch that runs every task at once. Returns its calls, those of jaxalign, and output."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    as_json = "import json, sys; print(json.dumps(sys.argv[1:]))"
    record = f"python3 -c '{as_json}' \"$@\""
    scripts = {
        bin_folder / "sbatch": f"""#!/usr/bin/env bash
({record}) >> {folder}/sbatch.log
job=$(wc -l < {folder}/sbatch.log)
for word; do
    case "$word" in --wrap=*) echo "$job"; eval "${{word#--wrap=}}"; exit;; esac
done
cat > {folder}/job-$job.sh
for i in $(seq 0 $((TASKS - 1))); do
    SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_JOB_ID=$job bash {folder}/job-$job.sh >&2
done
echo "$job"
""",
        bin_folder / "srun": '#!/usr/bin/env bash\nshift\nexec "$@"\n',
        bin_folder / "scontrol": f'#!/usr/bin/env bash\necho "$@" >> {folder}/scontrol.log\n',
        folder / ".venv/bin/jaxalign": f"#!/usr/bin/env bash\n({record}) >> {folder}/jaxalign.log\n"
        'case "$*" in *--shard=2/6*) exit 143;; esac\n',
    }
    for file, content in scripts.items():
        file.write_text(content)
        file.chmod(0o755)
    (folder / "submit.sh").write_text(text)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "submit.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr

    def lines(name):
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    return lines("sbatch.log"), lines("jaxalign.log"), done.stdout


@pytest.mark.multiprocess
def test_slurm_submits_shared_stages_and_then_every_row(plan, tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    text = slurm(plan, config="configs/studies/my study.py:a=1,b=2", workdir="studies/w")
    if shutil.which("shellcheck"):
        (tmp_path / "x.sh").write_text(text)
        subprocess.run(["shellcheck", str(tmp_path / "x.sh")], check=True)
    submitted, run, printed = slurm_tasks(text, folder)
    assert printed == "shared stages: 1\nrows: 2\nreport: 3\n"
    first, second, last = submitted
    assert {"--job-name=two-seeds-shared", "--array=0-1%6", "--requeue", "--signal=TERM@300"} <= set(first)
    assert {"--job-name=two-seeds", "--array=0-5%6", "--dependency=afterany:1"} <= set(second)
    assert not any(word.startswith("--dependency") for word in first)
    assert {"--job-name=two-seeds-report", "--dependency=afterany:2"} <= set(last)
    assert not any("gpus" in word for word in last)
    head = ["study", "--config=configs/studies/my study.py:a=1,b=2", "--workdir=studies/w"]
    assert run == [
        *([*head, "--shared", f"--shard={i}/2"] for i in range(2)),
        *([*head, f"--shard={i}/6"] for i in range(6)),
        ["report", "studies/w"],
    ]
    assert (folder / "scontrol.log").read_text() == "requeue 2_2\n"
    assert (folder / "studies/w/logs").is_dir()
    # Every stage and row is somebody's.
    assert [len(part(groups(plan), (i, 2))) for i in range(2)] == [1, 1]
    assert [row.id for i in range(6) for row in part(plan.rows, (i, 6))] == [row.id for row in plan.rows]


def test_gke_runs_a_job_for_each_row_after_the_shared_stages(plan):
    tree = yaml.safe_load(gke(plan, config="configs/studies/x.py:a=1", workdir="/bucket/studies/w"))
    assert (tree["kind"], tree["metadata"]["name"]) == ("JobSet", "two-seeds")
    shared, rows, report = tree["spec"]["replicatedJobs"]
    assert (shared["name"], shared["replicas"], rows["name"], rows["replicas"]) == ("shared", 2, "rows", 6)
    assert rows["dependsOn"] == [{"name": "shared", "status": "Complete"}]
    assert "dependsOn" not in shared
    (container,) = rows["template"]["spec"]["template"]["spec"]["containers"]
    head = ["jaxalign", "study", "--config=configs/studies/x.py:a=1", "--workdir=/bucket/studies/w"]
    assert container["command"] == [*head, "--shard=$(JOB_INDEX)/6"]
    assert (
        container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['jobset.sigs.k8s.io/job-index']"
    )
    assert shared["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-2:] == [
        "--shared", "--shard=$(JOB_INDEX)/2",
    ]  # fmt: skip
    assert rows["template"]["spec"]["parallelism"] == 1
    assert report["dependsOn"] == [{"name": "rows", "status": "Complete"}]
    pod = report["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["jaxalign", "report", "/bucket/studies/w"]
    assert "nodeSelector" not in pod
    assert "google.com/tpu" not in pod["containers"][0]["resources"]["limits"]


def test_rows_on_several_hosts(plan):
    text = gke(plan, config="x.py", workdir="w", distributed=True)
    (_, rows, _) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    assert rows["template"]["spec"]["parallelism"] == 4
    assert "--distributed" in rows["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "--workdir=w --distributed" in slurm(plan, config="x.py", workdir="w", distributed=True)


def test_a_study_that_shares_nothing(plan):
    rows = tuple(row for row in plan.rows if row.labels["beta"] == 0.1)
    stages = {key: stage for key, stage in plan.stages.items() if stage.name == "align"}
    alone = Plan(study=plan.study, folders=plan.folders, stages=stages, rows=rows)
    assert "--shared" not in slurm(alone, config="x.py", workdir="w").split("TASK\n}")[1]
    assert [
        job["name"] for job in yaml.safe_load(gke(alone, config="x.py", workdir="w"))["spec"]["replicatedJobs"]
    ] == ["rows", "report"]


def test_gke_keeps_results_in_the_bucket(plan):
    text = gke(plan, config="x.py", workdir="studies/w")
    assert "--workdir=/bucket/studies/w" in text
    assert "Results go to /bucket/studies/w" in text
    with pytest.raises(ConfigError, match=r"--workdir: got '/tmp/w', where a pod's files are lost .* below /bucket"):
        gke(plan, config="x.py", workdir="/tmp/w")
