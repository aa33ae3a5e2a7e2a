"""The files in tools/launch, without the clusters: shellcheck, the JobSet's fields, and the scripts with stand-ins."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxmm.config.keys import KEYS
from jaxmm.errors import STRANDED

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools/launch"

# Of the schemas of JobSet v1alpha2, batch/v1 Job and core/v1 Pod, the fields that the file has: each with the type of
# its value, the fields in it, or both for each item of a list. What ends in ? may be missing.
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "parallelism": int,
                        "completions": int,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": str,
                                    "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
                                }
                            ]
                        },
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
                                        "hostPath?": {"path": str, "type": str},
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
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    (of_pods,) = job["podFailurePolicy"]["rules"]  # an error of the user's ends it all
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert (of_pods["action"], of_pods["onExitCodes"]["values"]) == ("FailJob", [1])
    assert of_pods["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never", "a policy of pods asks for that"
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
    given = dict(word.removeprefix("--config.").split("=") for word in container["args"] if "--config." in word)
    assert all(KEYS[name].wrong(name, value) == "" for name, value in given.items())
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (given["data.cache"], env["JAX_COMPILATION_CACHE_DIR"]):
        assert path.startswith(tuple(mounted)), path
    assert {"containerPort": int(given["log.prometheus"])} in container["ports"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments; a line that ends in a backslash goes on."""
    text = re.sub(r"\\\n\s*", "", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]  # type: ignore[misc]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """The working folder of the image, with what its Dockerfile copies, of what the build is sent."""
    folder = tmp_path_factory.mktemp("image")
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = [shlex.split(given) for name, given in instructions(LAUNCH / "Dockerfile") if name == "COPY"]
    assert sent == {source for *sources, _ in copied for source in sources}, "what is sent is what is copied"
    for *sources, target in copied:
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)
    return folder


def test_the_image_s_extras_and_python_are_those_of_the_package():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (LAUNCH / "Dockerfile").read_text()
    defaults = dict(given.split("=") for name, given in instructions(LAUNCH / "Dockerfile") if name == "ARG")
    asked = [defaults["EXTRAS"], *re.findall(r"EXTRAS=([\w,]+)", text)]
    assert len(asked) == 4
    assert {extra for line in asked for extra in line.split(",")} <= set(package["optional-dependencies"])
    assert "python:${PYTHON}" in text
    least = package["requires-python"].removeprefix(">=")
    assert [int(n) for n in defaults["PYTHON"].split(".")] >= [int(n) for n in least.split(".")]


def test_the_image_s_check_runs_on_what_is_copied(image):
    commands = [given for name, given in instructions(LAUNCH / "Dockerfile") if name == "RUN"]
    (installs, check), (last,) = commands, [g for name, g in instructions(LAUNCH / "Dockerfile") if name == "CMD"]
    assert installs == 'pip install --no-cache-dir -e ".[${EXTRAS}]"'
    python = Path(sys.executable).parent
    for command in (check, shlex.join(json.loads(last))):
        environment = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(image)}
        done = subprocess.run(["bash", "-c", command], cwd=image, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (
        "config.log.prometheus"
        in subprocess.run(["bash", "-c", check], cwd=image, env=environment, capture_output=True, text=True).stdout
    )


@pytest.mark.slow
def test_the_package_is_built_from_what_the_image_copies_alone(image, tmp_path):
    program = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), "."]
    done = subprocess.run(program, cwd=image, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("jaxmm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"jaxmm/train.py", "jaxmm/configs/base.py", "jaxmm/report/run.html"} <= set(names)


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sbatch where srun is one task on this machine, and ``python`` a script."""
    for folder in ("bin", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    executable(tmp_path / "bin/srun", 'echo "srun $1"; shift; exec "$@"')
    executable(tmp_path / "bin/scontrol", 'echo "scontrol $*"')

    def job(python: str, **variables: str) -> subprocess.CompletedProcess:
        executable(tmp_path / "bin/python", f'echo "python $*"; {python}')
        return run(LAUNCH / "slurm.sbatch", tmp_path, "--workdir=my run", SLURM_JOB_ID="7", **variables)

    return job


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),  # an error of the user's
        (127, 0, False),
        (143, 20, True),  # saved after SIGTERM
        (STRANDED, 0, True),
        (137, 19, True),  # killed
        (134, 20, False),  # crashed once too often
    ],
)
def test_a_slurm_job_is_queued_again_where_it_may_go_on(slurm, status, restarts, requeued):
    done = slurm(f"exit {status}", **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}))
    assert done.returncode == status, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["srun --kill-on-bad-exit=1", "python -m jaxmm.train --workdir=my run"]
    assert lines[2:] == ["scontrol requeue 7"] * requeued
    assert ("after 20 restarts" in done.stderr) == (restarts == 20 and status != 143)


def test_an_error_of_one_process_stands_above_the_signals_by_which_slurm_ends_the_others(slurm, tmp_path):
    largest = 'shift; "$@" || first=$?; other=143; exit $((first > other ? first : other))'
    executable(tmp_path / "bin/srun", largest)
    done = slurm("exit 1")
    assert done.returncode == 1
    assert "scontrol" not in done.stdout


def test_a_slurm_task_waits_for_a_process_that_saves(slurm):
    both = "kill -TERM $PPID; kill -TERM $$; sleep 60"
    done = slurm(f"trap 'sleep 0.3; echo saved; exit 143' TERM; {both} & wait")
    assert done.stdout.splitlines()[-2:] == ["saved", "scontrol requeue 7"], done.stdout + done.stderr


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
