"""The launch files: what they would run is what the commands take."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from detector_bridge import server
from vigor_jax import cli
from vigor_jax.config import TrainConfig

LAUNCH = Path(__file__).parents[1] / "launch"


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
        assert f"/{path.parts[1]}" in mounted


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
