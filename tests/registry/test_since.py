"""What the opened report says of the champion."""

from __future__ import annotations

import json
import re

from tasks import promotion, publish, registry, since
from tests.project import Project
from tests.registry import house


def _gold(project: Project) -> str:
    return f"{json.loads(project.read('artifacts/evaluations/ppo/metrics.json'))['gold_mean']:.3f}"


def test_the_page_shows_what_has_changed_since_the_champion(project: Project) -> None:
    """Another model is data and figures that differ, another seed a parameter; what stages made of them is not repeated."""
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    assert since.section(project.folder) == "", "nobody was promoted yet"
    assert promotion.promote(office, version)[0] == "promoted"
    assert "ppo reads today what the champion was made from" in since.section(project.folder)

    before = _gold(project)
    house.give(project, 2, kindness=0.8)
    project.set("^seed: 1", "seed: 2")
    house.record(project, "candidate 2")
    told = since.section(project.folder)
    assert f"Version 1 of prefloop: the policy ppo of commit {version.tags['git.commit'][:10]}." in told
    row = re.search(r'gold score</th><td class="n">([^<]+)</td><td class="n">([^<]+)</td>', told)
    assert row
    assert before != _gold(project)
    assert row.groups() == (before, _gold(project))
    lines = re.findall("<li>(.*?)</li>", told)
    model = re.compile(r"data given/artifacts/policies/ppo: \w{12} today, \w{12} then \(policy@ppo")
    assert [line for line in lines if model.match(line)]
    assert [line for line in lines if line.startswith("parameter seed: 2 today, 1 then (")]
    assert not [line for line in lines if line.startswith("data artifacts/")]

    project.write("artifacts/report/index.html", "<body><main></main></body>")
    page = publish.report(project.folder, "run 7", "flow 7")
    assert page
    assert told + '<section id="lineage">' in page.read_text(encoding="utf-8")


def test_a_damaged_lineage_is_said_and_costs_no_run(project: Project) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    promotion.promote(office, version)
    (path,) = (project.folder / "mlruns").rglob("lineage.json")
    path.write_text("{}", encoding="utf-8")
    assert "KeyError" in since.section(project.folder), "a version of another layout"
    path.unlink()
    assert "lineage.json is not in its artifacts" in since.section(project.folder)
