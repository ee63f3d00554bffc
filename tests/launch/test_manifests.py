"""Would each engine accept what is rendered for it? Asked of the published schemas and command-line parsers, offline."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import launches
import pytest
import yaml

from elastic_jax.launch.options import pairs

SCHEMAS = Path(__file__).with_name("schemas")
SCRIPTS = [
    (name, file) for name in launches.EXAMPLES for file in launches.manifest(name).files if not file.endswith("yaml")
]
SECRET_VALUE = "hf_do_not_print"


def documents(name: str, file: str) -> list[Any]:
    return [document for document in yaml.safe_load_all(launches.manifest(name).files[file]) if document]


def validate(value: Any, schema: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(value, json.loads((SCHEMAS / schema).read_text()))


def validate_job_spec(spec: Any) -> None:
    job = dict(apiVersion="batch/v1", kind="Job", metadata=dict(name="x"), spec=spec)
    validate(job, "kubernetes_job.json")


YAML = [("jobset", file) for file in ("wave-0.yaml", "wave-1.yaml", "wave-2.yaml")] + [("jobset_gpu", "wave-1.yaml")]


@pytest.mark.parametrize(("name", "file"), YAML)
def test_jobsets_follow_the_schemas(name, file):
    found = documents(name, file)
    assert found
    for document in found:
        validate(document, "jobset.json")
        (replicated,) = document["spec"]["replicatedJobs"]
        spec = replicated["template"]["spec"]
        validate_job_spec(spec)
        # What the schemas leave to the controllers: a pod's name is the JobSet's and "-run-0-NNNN-xxxxx".
        assert len(document["metadata"]["name"]) + len("-run-0-9999-xxxxx") <= 63
        assert spec["parallelism"] == spec["completions"] == launches.launch(launches.EXAMPLES[name]).machine.hosts


@pytest.mark.parametrize("name", ["jobset", "jobset_gpu"])
def test_the_collecting_job_follows_the_schema(name):
    (document,) = documents(name, "collect.yaml")
    validate(document, "kubernetes_job.json")


def test_a_field_that_does_not_exist_is_refused_by_the_schemas():
    """The validation itself: these would pass if unknown fields did."""
    jsonschema = pytest.importorskip("jsonschema")
    document = documents("jobset", "wave-1.yaml")[0]
    spec = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["template"]["spec"]["containers"][0]["comand"] = []
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        validate_job_spec(spec)
    document["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    with pytest.raises(jsonschema.ValidationError, match="Restart"):
        validate(document, "jobset.json")
    with pytest.raises(jsonschema.ValidationError, match="recover"):
        validate({"job_recovery": {"recover": [75]}}, "skypilot_resources.json")


@pytest.mark.parametrize("name", ["skypilot", "skypilot_pod"])
def test_pipelines_follow_the_schema_of_a_task(name):
    header, *tasks = documents(name, "pipeline.yaml")
    assert set(header) == {"name"}
    for task in tasks:
        validate(task, "skypilot_task.json")
        validate(task["resources"], "skypilot_resources.json")
    machines = [job for wave in launches.launch(launches.EXAMPLES[name]).waves for job in wave.jobs]
    assert sum(task.get("num_nodes", 0) for task in tasks) == len(machines)


@pytest.mark.parametrize("name", ["skypilot", "skypilot_pod"])
def test_pipelines_are_read_by_skypilot(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    dag_utils = pytest.importorskip("sky.utils.dag_utils")
    monkeypatch.setenv("HF_TOKEN", "x")
    (tmp_path / "pipeline.yaml").write_text(launches.manifest(name).files["pipeline.yaml"])
    secrets = [(name, "x") for name in pairs(launches.EXAMPLES[name].options.secret, "secret")]
    dag = dag_utils.load_chain_dag_from_yaml(str(tmp_path / "pipeline.yaml"), secret_overrides=secrets)
    assert [task.name for task in dag.tasks] == [task["name"] for task in documents(name, "pipeline.yaml")[1:]]


@pytest.mark.parametrize(("name", "file"), SCRIPTS)
def test_scripts_are_valid_shell(name, file):
    text = launches.manifest(name).files[file]
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert text.startswith("#!/usr/bin/env bash\n# quickstart_tiny")
    if file.endswith(".sbatch"):  # Slurm reads none after the first command
        assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


def flags(text: str, command: str) -> list[str]:
    """The words of the first call of `command` in a script."""
    start = text.index(f"  {command} ")
    call = re.sub(r"\\\n", " ", text[start:]).split("\n")[0]
    return shlex.split(call)[len(command.split()) :]


def test_gcluster_is_called_with_flags_that_it_has():
    known = set((SCHEMAS / "gcluster_flags.txt").read_text().split())
    words = flags(launches.manifest("gcluster").files["submit.sh"], "gcluster job submit")
    used = {word.partition("=")[0].removeprefix("--") for word in words}
    assert {"name", "command", "compute-type", "image", "restart-on-exit-codes", "env"} <= used <= known


def test_xpk_is_called_as_its_parser_wants():
    words = flags(launches.manifest("xpk").files["submit.sh"], "xpk workload create")
    words = [word.replace("$1", "ej-a-0123456789").replace("$2", "KEY") for word in words]
    assert len([word for word in words if word.startswith("--command=")]) == 1
    core = pytest.importorskip("xpk.parser.core")
    import argparse

    parser = argparse.ArgumentParser()
    core.set_parser(parser)
    found = parser.parse_args(["workload", "create", *words])
    assert found.workload == "ej-a-0123456789" and found.restart_on_exit_codes == "75" and found.env == ["A=b c"]
    assert shlex.split(found.command) == [*launches.launch(launches.EXAMPLES["xpk"]).train("KEY", "auto")]
    from xpk.core import system_characteristics

    assert found.tpu_type in system_characteristics.UserFacingNameToSystemCharacteristics


@pytest.mark.parametrize("name", launches.EXAMPLES)
def test_only_references_of_secrets_are_written(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET_VALUE)
    for text in launches.manifest(name).files.values():
        assert SECRET_VALUE not in text


@pytest.mark.parametrize("name", ["xpk", "skypilot", "tpu_vm"])
def test_statistics_of_the_tools_are_switched_off(name):
    switch = dict(
        xpk="TELEMETRY_ENABLED=false",
        skypilot="SKYPILOT_DISABLE_USAGE_COLLECTION=1",
        tpu_vm="CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=true",
    )
    assert switch[name] in launches.manifest(name).files["submit.sh"]
