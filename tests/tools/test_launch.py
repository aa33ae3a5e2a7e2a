"""The files in tools/launch, without the clusters: shellcheck, the JobSet's fields, and the scripts with stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools/launch"

# Of the schemas of JobSet v1alpha2, batch/v1 Job and core/v1 Pod, the fields that the file has: each with the type of
# its value, the fields in it, or both for each item of a list. What ends in ? may be missing.
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "backoffLimit": int,
                        "completionMode": str,
                        "template": {
                            "spec": {
                                "restartPolicy": str,
                                "terminationGracePeriodSeconds": int,
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "command": [str],
                                        "args": [str],
                                        "env": [
                                            {
                                                "name": str,
                                                "value?": str,
                                                "valueFrom?": {"fieldRef": {"fieldPath": str}},
                                            }
                                        ],
                                        "ports": [{"containerPort": int}],
                                        "resources": {"limits": {"nvidia.com/gpu": int}},
                                        "volumeMounts": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes": [
                                    {
                                        "name": str,
                                        "persistentVolumeClaim?": {"claimName": str},
                                        "emptyDir?": {"medium": str},
                                    }
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def check(value: Any, schema: Any, where: str = "jobset") -> None:
    if isinstance(schema, list):
        assert isinstance(value, list), where
        assert value, where
        for i, item in enumerate(value):
            check(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert value.keys() <= {name.rstrip("?") for name in schema}, where
        assert {name for name in schema if not name.endswith("?")} <= value.keys(), where
        for name, inner in schema.items():
            if name.rstrip("?") in value:
                check(value[name.rstrip("?")], inner, f"{where}.{name.rstrip('?')}")
    else:
        assert type(value) is schema, where


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run(script: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a script where the programs in ``folder / "bin"`` stand before all others."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | variables
    clean["PATH"] = f"{folder / 'bin'}:{clean['PATH']}"
    return subprocess.run([shutil.which("bash") or "bash", str(script), *arguments], cwd=folder, env=clean, text=True,
                          capture_output=True, timeout=60)  # fmt: skip


@pytest.mark.parametrize("script", ["tools/launch/slurm.sbatch", "tools/launch/tpu_pod.sh", ".ci/run"])
def test_shellcheck_has_nothing_to_say(script):
    beside = Path(sys.executable).with_name("shellcheck")  # where the extra "test" puts it
    done = subprocess.run([beside if beside.exists() else "shellcheck", str(ROOT / script)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_the_jobset_has_fields_that_kubernetes_knows_and_that_agree():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    check(jobset, JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert workers["replicas"] == 1, "the numbers of pods are those of one job"
    assert job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    env = {
        entry["name"]: entry.get("value") or entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container["env"]
    }
    assert job["parallelism"] == job["completions"] == int(env["JAX_NUM_PROCESSES"])
    assert env["JAX_PROCESS_ID"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    name, port = jobset["metadata"]["name"], container["ports"][0]["containerPort"]
    assert env["JAX_COORDINATOR_ADDRESS"] == f"{name}-{workers['name']}-0-0.{name}:{port}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["python", "-m", "jaxmm.train"]
    (config,) = (word.removeprefix("--config=") for word in container["args"] if word.startswith("--config="))
    assert (ROOT / config).is_file()


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (0, False), (1, False)])
def test_a_slurm_job_that_saved_after_a_signal_is_queued_again_and_no_other_one(tmp_path, status, requeued):
    for folder in ("bin", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    executable(tmp_path / "bin/srun", f'echo "srun $*"; exit {status}')
    executable(tmp_path / "bin/scontrol", 'echo "scontrol $*"')
    done = run(LAUNCH / "slurm.sbatch", tmp_path, "--workdir=my run", SLURM_JOB_ID="7")
    assert done.returncode == status, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "srun --kill-on-bad-exit=1 python -m jaxmm.train --workdir=my run"
    assert lines[1:] == ["scontrol requeue 7"] * requeued


def pod(tmp_path: Path, **pythons: str) -> subprocess.CompletedProcess:
    """Runs tpu_pod.sh with a gcloud that does all here, in a worker's home; ``pythons``: 0 where it is new enough."""
    home, bin = tmp_path / "home", tmp_path / "bin"
    bin.mkdir()
    home.mkdir()
    for name in ("tar", "gzip", "mkdir", "hostname", "chmod", "cat"):
        (bin / name).symlink_to(str(shutil.which(name)))
    told = f'echo "$0 $*" >> {tmp_path}/told'
    made = f"mkdir -p .venv/bin; for name in pip python; do echo '{told}' > .venv/bin/$name; done; chmod +x .venv/bin/*"
    for name, status in pythons.items():
        executable(bin / name.replace("_", "."), f'{told}\nif [ "$1" = -c ]; then exit {status}; fi\n{made}')
    executable(
        bin / "gcloud",
        f'if [ "$4" = scp ]; then cp "$5" "{home}/${{6#*:}}"; exit; fi\n'
        f'last="${{*: -1}}"; cd {home}; PATH={bin} exec /bin/bash -c "${{last#--command=}}"',
    )
    return run(LAUNCH / "tpu_pod.sh", tmp_path, "--workdir=my run", TPU="slice", ZONE="zone")


def test_a_tpu_worker_takes_a_python_that_is_new_enough(tmp_path):
    done = pod(tmp_path, python3="1", python3_11="0")
    assert done.returncode == 0, done.stderr
    told = [line.removeprefix(f"{tmp_path}/bin/") for line in (tmp_path / "told").read_text().splitlines()]
    assert told[-3:] == [
        "python3.11 -m venv .venv",
        ".venv/bin/pip install --quiet -e .[tpu,gcs]",
        ".venv/bin/python -m jaxmm.train --workdir=my run",
    ]
    assert (tmp_path / "home/jaxmm/pyproject.toml").is_file()


def test_a_tpu_worker_without_one_is_one_line(tmp_path):
    done = pod(tmp_path, python3="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "has no Python 3.11 or newer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert ".venv" not in (tmp_path / "told").read_text()
