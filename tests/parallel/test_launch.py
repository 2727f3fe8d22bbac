"""The launch files: what they would run is what the commands take."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detector_bridge import server
from vigor_jax import cli
from vigor_jax.config import TrainConfig

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def objects():
    return {each["kind"]: each for each in yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())}


def pod(template):
    (container,) = template["spec"]["containers"]
    return template["spec"], container


def test_trainer_on_gke(objects, monkeypatch):
    monkeypatch.chdir(LAUNCH.parent)
    spec = objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod_spec, container = pod(spec["template"])
    assert container["command"][:3] == ["python", "-m", "vigor_jax.train"]
    given = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"][3:]]
    config = cli.parse(TrainConfig, given, description="")

    hosts, chips = spec["completions"], container["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod_spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert spec["parallelism"] == hosts == config.distributed.num_processes
    assert hosts * chips == rows * columns == config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    assert hosts * chips == config.inference_mesh.data * config.inference_mesh.fsdp * config.inference_mesh.tensor
    assert config.distributed.process_id == 3
    name, job = objects["JobSet"]["metadata"]["name"], objects["JobSet"]["spec"]["replicatedJobs"][0]["name"]
    assert config.distributed.coordinator.startswith(f"{name}-{job}-0-0.{name}:")

    pool = objects["StatefulSet"]
    service = objects["Service"]["metadata"]["name"]
    assert config.detection.model is None
    assert config.detection.addresses == tuple(
        f"{pool['metadata']['name']}-{i}.{service}:50051" for i in range(pool["spec"]["replicas"])
    )
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (config.run.dir, config.model.path, config.detection.token_file):
        assert f"/{Path(path).parts[1]}" in mounted


def test_detectors_on_gke(objects):
    spec = objects["StatefulSet"]["spec"]
    pod_spec, container = pod(spec["template"])
    assert container["command"][:3] == ["python", "-m", "detector_bridge.server"]
    options = server.arguments(container["command"][3:])
    assert options.listen.endswith(f":{container['ports'][0]['containerPort']}")
    assert options.metrics_port == container["ports"][1]["containerPort"]
    assert options.grace < pod_spec["terminationGracePeriodSeconds"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["grpc"] == {"port": 50051, "service": server.SERVICE}
    assert spec["selector"]["matchLabels"] == objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]


def test_slurm_job_passes_its_arguments_on_and_goes_back_into_the_queue(tmp_path):
    """With stand-ins for srun and scontrol, which this machine does not have."""
    for name in ("srun", "scontrol"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n[ {name} = scontrol ] || exit $CODE\n')
        command.chmod(0o755)
    for code, called in (("0", 1), ("1", 1), ("143", 2)):
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": code, "SLURM_JOB_ID": "17"}
        found = subprocess.run([LAUNCH / "slurm.sbatch", "--run.dir", "runs/a b"], env=environment, check=False)
        assert found.returncode == int(code)
        calls = (tmp_path / "calls").read_text().splitlines()
        assert calls[0] == "srun --kill-on-bad-exit=1 python -m vigor_jax.train --run.dir runs/a b"
        assert calls[1:] == ["scontrol requeue 17"] * (called - 1)


def test_tpu_vm_runs_the_command_on_all_hosts(tmp_path):
    """With a stand-in for gcloud."""
    (tmp_path / "gcloud").write_text(f'#!/bin/sh\nfor word; do echo "$word"; done >> {tmp_path}/calls\n')
    (tmp_path / "gcloud").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    script = [LAUNCH / "tpu_vm.sh", "pod", "us-central1-a", "10.0.0.2:/share"]
    subprocess.run([*script, "--run.dir", "/mnt/shared/a b"], env=environment, check=True)
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--worker\nall") == 3
    last = calls.splitlines()[-1]
    assert shlex.split(last.partition("&& ")[2])[1:] == ["-m", "vigor_jax.train", "--run.dir", "/mnt/shared/a b"]
    refused = subprocess.run(
        [LAUNCH / "tpu_vm.sh", "pod"], env=environment, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert re.match(r"launch/tpu_vm.sh NAME ZONE NFS", refused.stderr)


JOB = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n1"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
JOIN = """
import logging, sys, jax
from vigor_jax import cli
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.parallel.config import DistributedConfig
def main():
    cli.show_progress()
    join_processes(DistributedConfig(**eval(sys.argv[1])))
    print(jax.process_count())
cli.run(main)
"""


def join(given=None, **environment):
    """Joins in another process, with no other variables of SLURM, as a command does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMPI"))}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, repr(given or {})],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=LAUNCH.parent,
    )  # fmt: skip


def ended(process):
    out, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    return process.returncode, out.strip(), errors


BATCH = JOB | {"SLURM_NTASKS": "8", "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1"}
SALLOC = BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "warns"),
    [
        ({}, False),
        (JOB | {"SLURM_NTASKS": "1"}, False),
        pytest.param(JOB, False, marks=pytest.mark.main),
        pytest.param(BATCH, True, marks=pytest.mark.main),
        (SALLOC, True),
        (JOB | {"SLURM_NTASKS": "4"}, True),
        (BATCH | STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, False),
    ],
)
def test_one_process_where_srun_started_no_others(environment, warns):
    code, out, errors = ended(join(**environment))
    assert (code, out) == (0, "1")
    assert ("srun did not start this process: it runs as one process" in errors) == warns
    assert ("--distributed.enabled false" in errors) == warns


MANY_NODES = BATCH | {"SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        pytest.param(
            MANY_NODES,
            {},
            "8 tasks on 2 nodes, and srun did not start this process; start it as srun python",
            marks=pytest.mark.main,
        ),
        (SALLOC | {"SLURM_NNODES": "2"}, {}, "8 tasks on 2 nodes"),
        (BATCH, {"enabled": True}, "cannot join the other processes (coordinator_address should be defined.)"),
        ({}, {"enabled": True}, "cannot join the other processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "cannot join the other processes"),
        pytest.param(
            {},
            {"coordinator": "localhost:1", "num_processes": 2, "process_id": 5},
            "cannot join the other processes",
            marks=pytest.mark.main,
        ),
    ],
)
def test_processes_that_are_not_to_be_found(environment, given, message):
    code, out, errors = ended(join(given, **environment))
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, "")
    assert message in line
    assert "--distributed.enabled false" in line
    assert ended(join({"enabled": False}, **environment))[:2] == (0, "1")


def test_a_step_of_several_tasks_is_joined():
    environment = JOB | STEP | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": f"{os.getpid()}"}
    tasks = [join(**environment | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}) for rank in range(2)]
    assert [ended(task)[:2] for task in tasks] == [(0, "2"), (0, "2")]


LATE = """
import jax
from vigor_jax.errors import InputError
from vigor_jax.parallel import sharding
from vigor_jax.parallel.sharding import join_processes
from vigor_jax.parallel.config import DistributedConfig
def attempt(*given):
    try:
        join_processes(DistributedConfig(*given))
        print("joined", jax.process_count(), jax.distributed.is_initialized())
    except InputError as error:
        print(error)
"""
LATE_LINE = (
    "distributed: this process used JAX before it was to join the others; call vj.run before other uses of JAX in this "
    "process, or give distributed.enabled false to run as one"
)


def late(program, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMPI"))}
    run = subprocess.run(
        [sys.executable, "-c", LATE + program], check=True, capture_output=True, text=True, cwd=LAUNCH.parent,
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment, timeout=120,
    )  # fmt: skip
    return run.stdout.splitlines()


def test_who_has_joined_may_be_asked_again():
    with socket.create_server(("127.0.0.1", 0)) as server_socket:
        port = server_socket.getsockname()[1]
    given = f"None, 'localhost:{port}', 1, 0"
    assert late(f"attempt({given}); jax.devices(); attempt({given}); attempt()") == ["joined 1 True"] * 3


@pytest.mark.slow
@pytest.mark.main
def test_after_another_use_of_jax():
    """A host with chips, which may be alone, runs; one that was told of others does not run without them."""
    alone = "jax.devices(); sharding.in_cluster = lambda: True; attempt(); attempt(False); attempt(True)"
    assert late(alone) == ["joined 1 False"] * 2 + [LATE_LINE]
    assert late("jax.devices(); attempt(None, 'localhost:1', 1, 0)") == [LATE_LINE]
    assert late("jax.devices(); attempt()", OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0") == [LATE_LINE]
