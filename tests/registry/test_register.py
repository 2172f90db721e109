"""A registered version: a plain transformers folder that anything loads, its manifest, its lineage; one content, one version."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows.__main__ import parser
from flows.environment import free_port
from flows.pipeline_commands import _folder_of_version
from pipelines.errors import ConfigurationError, DataError
from tasks import locks, registry
from tests.project import Project
from tests.registry import house


def test_a_version_is_a_plain_transformers_folder(project: Project) -> None:
    import mlflow
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model

    given = project.folder / "given/artifacts/policies/ppo/model"
    speaking = load_tokenizer(given)
    speaking.chat_template = "{% for message in messages %}{{ message['role'] | upper }}: {{ message['content'] }}{% endfor %}"
    save_model(load_causal_lm(given), speaking, given)
    house.record(project, "a model that is spoken to")
    office = registry.opened(project.folder)
    version, fresh = registry.register(office, "ppo")
    assert fresh
    assert version.number == "1"
    office.registry.set_alias("champion", "1")

    mlflow.set_tracking_uri(office.registry.uri)
    folder = mlflow.artifacts.download_artifacts("models:/prefloop@champion")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    trained = AutoModelForCausalLM.from_pretrained(project.folder / "artifacts/policies/ppo/model")
    asked = tokenizer("HAMLET: To be", return_tensors="pt").input_ids
    assert torch.equal(model(asked).logits, trained(asked).logits)
    said = tokenizer.apply_chat_template([{"role": "hamlet", "content": "To be"}], tokenize=False)
    assert said == "HAMLET: To be"

    names = {path.name for path in Path(folder).iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "manifest.json",
        "README.md",
        "MLmodel",
        "input_example.json",
    } <= names
    assert not [path for path in Path(folder).rglob("*") if path.suffix in (".py", ".pkl", ".pt", ".bin")]
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    for path in (project.folder / "artifacts/policies/ppo/model").iterdir():
        assert manifest[path.name] == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    weights = (project.folder / "artifacts/policies/ppo/model/model.safetensors").read_bytes()
    copies = [path for path in (project.folder / "mlruns").rglob("*.safetensors") if path.read_bytes() == weights]
    assert len(copies) == 1, "stored once, whatever the aliases"


def test_the_tags_say_where_it_comes_from(project: Project) -> None:
    version, _ = registry.register(registry.opened(project.folder), "ppo")
    head = project.git("rev-parse", "HEAD").strip()
    metrics = json.loads(project.read("artifacts/evaluations/ppo/metrics.json"))
    assert version.tags["git.commit"] == head
    assert project.git("rev-list", "-n", "1", version.tags["git.tag"]).strip() == head
    assert json.loads(version.tags["metric.win_rate_ci"]) == metrics["win_rate_ci"]
    assert {"prefloop.dvc_lock", "prefloop.data", "prefloop.params", "prefloop.environment", "prefloop.cost"} <= set(version.tags)
    card = registry.opened(project.folder).registry.read(version, "README.md").decode()
    assert "PPO" in card
    assert f"{metrics['win_rate']:.4g}" in card
    assert head in card
    parts = ("**Data.**", "**Licences.** Base: ", "Data: ", "**Limits.** Evaluated on answers of at most", "**Cost.**")
    assert [part for part in parts if part not in card] == []


def test_the_environment_is_that_of_the_run_that_made_it(project: Project) -> None:
    """A stage whose run MLflow knows has that run's, another that of this machine."""
    from pipelines.adapters import machine, recorder

    office = registry.opened(project.folder)
    client, experiment = recorder.connect(project.folder)
    outs = locks.stage_hash(locks.parse(project.read("dvc.lock")), "policy@ppo")
    run = client.create_run(experiment, tags={"prefloop.outs_hash": outs, machine.ENVIRONMENT: '{"torch": "1.0"}'})
    client.set_terminated(run.info.run_id)
    version, _ = registry.register(office, "ppo")
    found = registry.lineage_of(office, version)["environment"]
    assert found["policy@ppo"] == {"torch": "1.0"}
    assert found["reward"] == machine.environment(office.params.runtime)


def test_the_same_content_is_the_same_version(project: Project) -> None:
    office = registry.opened(project.folder)
    first, _ = registry.register(office, "ppo")
    project.write("notes.txt", "another commit\n")
    project.git("add", "notes.txt")
    project.git("commit", "--quiet", "--message", "notes")
    again, fresh = registry.register(office, "ppo")
    assert (again.number, fresh) == (first.number, False)
    house.candidate(project, 2)
    other, fresh = registry.register(office, "ppo")
    assert (other.number, fresh) == ("2", True)
    assert office.registry.aliases() == {"challenger": "2"}
    assert [entry.kind for entry in office.ledger.entries()] == ["register", "register"]


def test_a_policy_with_a_soft_prompt_is_not_registered(project: Project) -> None:
    (project.folder / "artifacts/policies/ppo/model/soft_prompt").mkdir()
    with pytest.raises(ConfigurationError, match="--policy ppo: it answers through a soft prompt"):
        registry.register(registry.opened(project.folder), "ppo")


def test_what_git_does_not_hold_is_not_registered(project: Project) -> None:
    office = registry.opened(project.folder)
    house.give(project, 3)
    with pytest.raises(ConfigurationError, match="policy@ppo.*: not up to date; `prefloop run` first"):
        registry.register(office, "ppo")
    project.dvc("repro", "--quiet")
    with pytest.raises(ConfigurationError, match="not recorded in git.*`prefloop commit`"):
        registry.register(office, "ppo")
    with pytest.raises(ConfigurationError, match="--policy dpo: params.yaml has no such policy; policies: ppo"):
        registry.register(office, "dpo")
    assert office.registry.versions() == []


def test_a_version_is_pulled_and_checked(project: Project, tmp_path: Path) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    pulled = registry.pull(office, version, tmp_path / "here")
    assert (pulled / "model.safetensors").read_bytes() == (
        project.folder / "artifacts/policies/ppo/model/model.safetensors"
    ).read_bytes()
    [kept] = (project.folder / "mlruns").rglob("model.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"models:/prefloop/1: model.safetensors is not as registered"):
        registry.pull(office, version, tmp_path / "there")


def test_weights_may_stay_in_dvc_and_survive_a_clean_up(project: Project, tmp_path: Path) -> None:
    project.write("params.yaml", project.read("params.yaml") + "registry:\n  copy_weights: false\n")
    project.git("commit", "--quiet", "--all", "--message", "leave the weights in DVC")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    assert version.source.startswith("dvc://registry/prefloop/")
    assert not list((project.folder / "mlruns").rglob("*.safetensors"))
    weights = (project.folder / "artifacts/policies/ppo/model/model.safetensors").read_bytes()
    house.candidate(project, 2)  # the workspace moves on, and somebody cleans up
    project.dvc("gc", "--workspace", "--force")
    assert (registry.pull(office, version, tmp_path / "here") / "model.safetensors").read_bytes() == weights, "from DVC's remote"


def test_a_reference_that_names_nothing_says_what_there_is(project: Project) -> None:
    office = registry.opened(project.folder)
    with pytest.raises(ConfigurationError, match="none yet"):
        office.registry.version("champion")
    registry.register(office, "ppo")
    assert office.registry.version("models:/prefloop/1").number == "1"
    assert office.registry.version("models:/prefloop@challenger").number == "1"
    for wrong in ("7", "models:/other/1", "../../etc/passwd"):
        with pytest.raises(ConfigurationError, match=r"no such version; versions: 1|not a version"):
            office.registry.version(wrong)


@pytest.mark.slow
def test_mlflow_serves_it(project: Project) -> None:
    """The real scoring server, over HTTP; greedy answers are those of the model itself."""
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    port = free_port()
    environment = {**project.environment, "MLFLOW_TRACKING_URI": office.registry.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        version.uri,
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    log = (project.folder / "serve.log").open("w")
    server = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        body = {"dataframe_split": {"columns": ["prompt"], "data": [["HAMLET: To be"], ["LEAR: Blow"]]},
                "params": {"temperature": 0.0, "max_new_tokens": 5}}  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 180
        while True:
            try:
                answers = json.loads(urllib.request.urlopen(request, timeout=60).read())["predictions"]
                break
            except OSError as error:
                said = error.read().decode() if hasattr(error, "read") else ""
                assert time.monotonic() < deadline, (project.folder / "serve.log").read_text()[-3000:] + said
                assert not said, said
                time.sleep(1.0)
        from pipelines.adapters.serving import Served

        model = Served(project.folder / "artifacts/policies/ppo/model")
        import pandas as pd

        frame = pd.DataFrame({"prompt": ["HAMLET: To be", "LEAR: Blow"]})
        assert answers == model.predict(frame, {"temperature": 0.0, "max_new_tokens": 5})
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
        shutil.rmtree(project.folder / "mlruns", ignore_errors=True)


def test_a_version_is_compared_as_a_folder_that_is_named_after_it(project: Project, tmp_path: Path) -> None:
    office = registry.opened(project.folder)
    registry.register(office, "ppo")
    asked = parser().parse_args(["compare", "ppo", "models:/prefloop/1"]).models
    assert asked == ["ppo", "models:/prefloop/1"]
    assert _folder_of_version(project.folder, "ppo", tmp_path) == "ppo"
    folder = Path(_folder_of_version(project.folder, "models:/prefloop/1", tmp_path))
    assert folder.name == "version-1"
    trained = project.folder / "artifacts/policies/ppo/model/model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == trained.read_bytes()
    with pytest.raises(ConfigurationError, match="no such version; versions: 1"):
        _folder_of_version(project.folder, "models:/prefloop@champion", tmp_path)
