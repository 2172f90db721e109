"""From candidate to champion and back on real versions: what is asked, what is answered, what the ledger and MLflow then say."""

from __future__ import annotations

import json
import time

import pytest

from pipelines.errors import ConfigurationError
from tasks import promotion, registry
from tasks.ledger import Lost
from tests.project import Project
from tests.registry import house

KIND, KINDER, GRIM = 0.45, 0.8, 0.05
"""How often a candidate pleases the judge; the SFT model: 0.1."""


def settings(project: Project, text: str) -> None:
    project.write("params.yaml", house.PARAMS.replace("promotion:\n", text))
    project.git("commit", "--quiet", "--allow-empty", "--all", "--message", "settings")


def registered(project: Project, seed: int, kindness: float) -> registry.Version:
    house.candidate(project, seed, kindness)
    return registry.register(registry.opened(project.folder), "ppo")[0]


def test_the_first_champion_beats_sft_the_next_one_the_champion(project: Project) -> None:
    office = registry.opened(project.folder)
    first, _ = registry.register(office, "ppo")
    outcome, entry = promotion.promote(office, first)
    assert (outcome, entry.kind, entry.version, entry.body["from"]) == ("promoted", "promote", "1", "")
    assert promotion.promote(office, first)[0] == "champion"

    worse = registered(project, 2, GRIM)
    outcome, decision = promotion.promote(office, worse)
    assert outcome == "refused"
    failed = [gate["name"] for gate in decision.body["gates"] if not gate["passed"]]
    assert "win rate against version 1: lower end" in failed
    assert office.registry.aliases() == {"champion": "1", "challenger": "2"}
    assert office.registry.version("2").tags["prefloop.parent"] == "1", "the champion that it was compared with"
    assert promotion.promote(office, worse)[1].number == decision.number, "the same evidence is the same decision"

    better = registered(project, 3, KINDER)
    started = time.process_time()
    outcome, entry = promotion.promote(office, better)
    assert time.process_time() - started < 2.0, "seconds of CPU without the evaluation, which runs in a process of its own"
    assert (outcome, entry.body["from"]) == ("promoted", "1")
    assert office.registry.aliases() == {"champion": "3", "previous": "1", "challenger": "2"}
    tags = office.registry.version("3").tags
    assert tags["prefloop.parent"] == "1"
    assert tags["prefloop.decision"].startswith("passed")
    assert office.registry.version("2").tags["prefloop.decision"].startswith("refused")


def test_every_gate_of_a_decision_is_on_record(project: Project) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    settings(project, "promotion:\n  max_kl: 0.5\n")
    office = registry.opened(project.folder)
    outcome, decision = promotion.promote(office, version)
    assert outcome == "refused"
    gates = {gate["name"]: gate for gate in decision.body["gates"]}
    kl = gates["KL to the SFT model (nats a sequence)"]
    metrics = json.loads(project.read("artifacts/evaluations/ppo/metrics.json"))
    assert kl == {**kl, "value": metrics["kl"], "bound": "at most 0.5", "passed": False}
    assert [gate["passed"] for name, gate in gates.items() if gate is not kl] == [True] * (len(gates) - 1)
    assert decision.body["compared"]["comparisons"] == 120


def test_the_head_to_head_is_counted_answer_by_answer(project: Project) -> None:
    """Win rate of version 2 over version 1, counted again from the two tables by hand."""
    import pandas as pd

    office = registry.opened(project.folder)
    promotion.promote(office, registry.register(office, "ppo")[0])
    theirs = pd.read_parquet(project.folder / "artifacts/evaluations/ppo/samples.parquet")
    version = registered(project, 2, KINDER)
    ours = pd.read_parquet(project.folder / "artifacts/evaluations/ppo/samples.parquet")
    compared = promotion.compare(office, version, "1")
    points = [
        1.0 if a - b > 0.05 else 0.0 if b - a > 0.05 else 0.5
        for a, b, name in zip(ours["gold"], theirs["gold"], ours["answer"], strict=True)
        if name != "greedy"
    ]
    assert compared["win_rate"] == pytest.approx(sum(points) / len(points), abs=1e-6)
    assert compared["interval"][0] <= compared["win_rate"] <= compared["interval"][1]
    assert {name: group["prompts"] for name, group in compared["groups"].items()} == {"even": 20, "odd": 20}
    prompts = pd.read_parquet(project.folder / "artifacts/prepared/prompts.parquet").set_index("id")["group"]
    even = ours[(ours["answer"] != "greedy") & (ours["prompt_id"].map(prompts) == "even")]
    assert compared["groups"]["even"]["challenger"]["eos_rate"] == pytest.approx(even["ended"].mean(), abs=1e-6)


def test_a_version_of_another_run_is_compared_with_its_own_evaluation_only(project: Project) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    house.candidate(project, 2)
    with pytest.raises(ConfigurationError, match=r"this folder holds another run; `git checkout registry/prefloop/\w+ -- params"):
        promotion.promote(office, version)


def test_a_rollback_is_quick_and_for_good(project: Project) -> None:
    office = registry.opened(project.folder)
    promotion.promote(office, registry.register(office, "ppo")[0])
    second = registered(project, 2, KINDER)
    promotion.promote(office, second)
    started = time.monotonic()
    code, printed = project.prefloop("rollback", "--reason", "it swears")
    seconds = time.monotonic() - started
    assert code == 0, printed
    assert "models:/prefloop@champion is version 1 again" in printed
    assert seconds < 30, "5 s where nobody else works on the machine"
    office = registry.opened(project.folder)
    assert office.registry.aliases() == {"champion": "1"}
    assert "prefloop.rolled_back" in office.registry.version("2").tags
    with pytest.raises(Lost, match="was rolled back"):
        promotion.promote(office, second)
    with pytest.raises(Lost, match="was rolled back"):
        promotion.promote(office, registry.register(office, "ppo")[0])
    code, printed = project.prefloop("rollback", "--reason", "again")
    assert code == 1
    assert "nothing to roll back to" in printed


def test_a_sick_training_is_not_promoted(project: Project) -> None:
    """Two steps without a KL are an alarm of the doctor (D1): the version's verdict, and the one gate that refuses it."""
    import pandas as pd

    house.give(project, 2, KINDER)
    path = project.folder / "given/artifacts/policies/ppo/history.parquet"
    history = pd.read_parquet(path)
    history.loc[history["step"].isin([10, 12]), "objective/kl"] = float("nan")
    history.to_parquet(path)
    house.record(project, "a sick training")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    assert version.tags["prefloop.doctor"] == "ppo: D1 numbers that are not finite"
    outcome, decision = promotion.promote(office, version)
    assert outcome == "refused"
    assert [gate["name"] for gate in decision.body["gates"] if not gate["passed"]] == ["doctor"]


def test_the_remotes_are_asked(project: Project) -> None:
    """The tag and the data of a version are on the remotes, or the gate says what is not."""
    elsewhere = project.folder.parent / "remote.git"
    project.git("init", "--quiet", "--bare", str(elsewhere))
    project.git("remote", "add", "origin", str(elsewhere))
    settings(project, "registry:\n  git_remote: origin\npromotion:\n  pushed: true\n")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    tag = version.tags["git.tag"]
    assert f"refs/tags/{tag}" in project.git("ls-remote", "--tags", "origin")
    [weights] = [file for file in (project.folder / "artifacts/policies/ppo").rglob("*.safetensors")]
    pushed = [file.read_bytes() for file in (project.folder / ".dvc-remote").rglob("*") if file.is_file()]
    assert weights.read_bytes() in pushed
    project.git("push", "--quiet", "origin", "--delete", tag)
    outcome, decision = promotion.promote(office, version)
    assert outcome == "refused"
    [gate] = [gate for gate in decision.body["gates"] if not gate["passed"]]
    assert (gate["name"], gate["value"]) == ("pushed", f"{tag} is not on origin")
    project.git("push", "--quiet", "origin", tag)
    assert promotion.promote(office, version)[0] == "promoted"


def test_a_person_is_asked_and_the_answer_recorded(project: Project) -> None:
    settings(project, "promotion:\n  approval: true\n")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    with pytest.raises(ConfigurationError, match="no decision waits for approval"):
        promotion.answer(office, version, True, "looks fine")
    outcome, decision = promotion.promote(office, version)
    assert outcome == "waiting"
    assert office.standing().champion == ""
    with pytest.raises(ConfigurationError, match="--reason: say why"):
        promotion.answer(office, version, True, " ")
    given, promoted = promotion.answer(office, version, True, "read 50 answers", who="ann@example.org")
    assert promoted is not None
    assert (given.body["evidence"], given.body["who"]) == (decision.hash, "ann@example.org")
    assert promoted.body["approval"] == given.number
    assert office.standing().champion == "1"
    with pytest.raises(Lost, match=r"ann@example.org has answered already \(ledger entry \d+\): read 50 answers"):
        promotion.answer(office, version, False, "I do not")


def test_a_rejection_keeps_the_champion(project: Project) -> None:
    settings(project, "promotion:\n  approval: true\n")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    promotion.promote(office, version)
    code, printed = project.prefloop("approve", "1", "--reject", "--reason", "too short")
    assert code == 0, printed
    assert "rejected; the champion stays; t@example.org: too short" in printed
    assert office.standing().champion == ""
    with pytest.raises(Lost, match="has answered already"):
        promotion.answer(office, version, True, "but I like it")
    code, printed = project.prefloop("promote", "1")
    assert code == 1, "the question has been answered"
    assert "models:/prefloop/1 is refused: no, t@example.org: too short" in printed


def test_an_approval_comes_too_late(project: Project) -> None:
    settings(project, "promotion:\n  approval: true\n  approval_hours: 0.0000001\n")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    promotion.promote(office, version)
    time.sleep(1.1)
    with pytest.raises(ConfigurationError, match="the time to answer was over"):
        promotion.answer(office, version, True, "yes")
    assert office.standing().champion == ""


@pytest.mark.slow
def test_evidence_about_a_former_champion_promotes_nobody(project: Project) -> None:
    office = registry.opened(project.folder)
    first, _ = registry.register(office, "ppo")
    compared = promotion.compare(office, first, "")
    slow = promotion.decide(office, first, compared, "")
    second = registered(project, 2, KINDER)
    promotion.promote(office, second)
    with pytest.raises(Lost, match=r"the champion is version 2 \(ledger entry \d+\) by now, and it was compared with nobody"):
        promotion.enact(office, slow)
    assert office.registry.aliases()["champion"] == "2"


def test_a_changed_byte_in_the_store_stops_the_promotion(project: Project) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    [kept] = (project.folder / "mlruns").rglob("model.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    outcome, decision = promotion.promote(office, version)
    assert outcome == "refused"
    [gate] = [gate for gate in decision.body["gates"] if not gate["passed"]]
    assert (gate["name"], gate["value"]) == ("manifest", "model.safetensors")


@pytest.mark.slow
def test_champion_history_audit_and_impact(project: Project) -> None:
    office = registry.opened(project.folder)
    assert project.prefloop("champion")[0] == 1
    promotion.promote(office, registry.register(office, "ppo")[0])
    promotion.promote(office, registered(project, 2, KINDER))
    code, printed = project.prefloop("champion")
    assert code == 0, printed
    assert "models:/prefloop/2" in printed
    code, printed = project.prefloop("history")
    assert [line.split()[2] for line in printed.splitlines()[1:]] == ["register", "decision", "promote"] * 2

    code, printed = project.prefloop("audit", "--export", "ledger.jsonl")
    assert code == 0, printed
    assert "6 entries" in printed
    from tasks import audit

    export = project.folder / "ledger.jsonl"
    assert audit.verify_export(export) == []
    export.write_text(export.read_text().replace('"passed": true', '"passed": false', 1))
    assert audit.verify_export(export) == ["entry 2: its content is not what was hashed"]
    office.ledger.path.rename(project.folder / "elsewhere")  # the record is lost, MLflow's tags are not
    assert project.prefloop("audit")[0] == 2

    versions = lambda what: [row[0] for row in audit.impact(office, what)]  # noqa: E731
    both = ["models:/prefloop/2", "models:/prefloop/1"]
    assert versions("d3") == both, "a row that both learned from"
    assert versions("only-2") == ["models:/prefloop/2"]
    assert versions("d9") == [], "a row of the test split"
    assert [row[2] for row in audit.impact(office, "moved-2")] == [
        "artifacts/prepared/demonstrations.parquet (id)",
        "artifacts/prepared/demonstrations.parquet (the same prompt)",
    ], "another file has numbered it otherwise"
    assert versions("moved-1") == both, "only the older version knows this id"
    assert versions("nothing") == []
    demonstrations = "artifacts/prepared/demonstrations.parquet"
    import hashlib

    md5 = hashlib.md5((project.folder / demonstrations).read_bytes()).hexdigest()
    assert versions(md5[:10]) == ["models:/prefloop/2"]
    rows = audit.impact(office, demonstrations)
    assert rows[0][2] == f"{demonstrations} (this content)"
    assert rows[1][2] == f"{demonstrations} (another content)"
