"""The report page: what it holds, that it holds it safely, and how it behaves in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from flows import seeds
from pipelines.config import Evaluate
from pipelines.data.schemas import GROUP_SCORES
from pipelines.data.tables import write_json, write_table
from pipelines.diagnosis.audit import Audit, Known, audit
from pipelines.evaluation import findings, page, plots
from pipelines.evaluation.findings import in_hash_order, labels
from pipelines.evaluation.svg import SERIES, inline
from tasks import publish
from tests.evaluation.browser import Browser, browser, found
from tests.evaluation.synthetic import NASTY, preferences, write_run

ROOT = Path(__file__).resolve().parent.parent.parent
METHODS = {"dpo": "dpo", "ppo": "ppo"}


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> findings.Findings:
    root = tmp_path_factory.mktemp("run")
    write_run(root, METHODS, prompts=40, nasty=True)
    return findings.gather(root / "artifacts", METHODS, Evaluate(), seed=1)


@pytest.fixture(scope="module")
def drawn(gathered: findings.Findings) -> list[plots.Plot]:
    return plots.draw(gathered)


@pytest.fixture(scope="module")
def html(gathered: findings.Findings, drawn: list[plots.Plot]) -> str:
    return page.render(gathered, drawn, examples=10, audited=audited(gathered))


def audited(gathered: findings.Findings) -> Audit:
    """What the detectors say; PPO's learning rate was too high, and dpo is told to be worse than SFT."""
    worse = gathered.metrics["policies"]["dpo"] | {"win_rate_ci": [0.3, 0.4]}
    metrics = gathered.metrics | {"policies": gathered.metrics["policies"] | {"dpo": worse}}
    clipped = gathered.histories["ppo"].assign(**{"policy/clipfrac": 0.6})
    return audit(Known(gathered.histories | {"ppo": clipped}, metrics, {}, gathered.samples))


class Visible(HTMLParser):
    """The elements and their text, in order, without scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for key, value in attrs if key == "id"]
        if tag not in ("meta", "link", "br", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip() and self.stack and self.stack[-1] not in ("script", "style"):
            self.found.append((self.stack[-1], data.strip()))


def test_it_opens_with_the_verdict_and_the_win_table(html: str) -> None:
    shown = Visible(html).found
    heading = next(text for tag, text in shown if tag == "h1")
    assert heading.startswith("Both policies beat the SFT model: dpo wins ")
    first_table = html.index("<table")
    assert html.index("<h1>") < first_table < html.index("<figure")
    assert 'class="wins"' in html[first_table : first_table + 40]


def test_the_ceiling_of_the_labels_by_hand() -> None:
    """Four test pairs, three labelled in the gold order; over all five pairs three as well."""
    pairs, gold = preferences()
    assert labels(pairs, gold) == {"test_pairs": 4, "pair_accuracy_ceiling": 0.75, "label_agreement": 0.6}
    assert labels(pairs, gold.iloc[:0]) == {"test_pairs": 4, "pair_accuracy_ceiling": None, "label_agreement": None}


def test_the_figures_have_the_promised_shape(gathered: findings.Findings) -> None:
    metrics = gathered.metrics
    assert set(metrics) == {"sft", "reward", "policies"}
    assert set(metrics["policies"]) == {"dpo", "ppo"}
    keys = {"gold_mean", "reward_mean", "kl", "win", "lose", "tie", "win_rate", "win_rate_ci"}
    assert all(keys <= set(row) for row in metrics["policies"].values())
    assert all(row["win"] + row["lose"] + row["tie"] == pytest.approx(1.0, abs=2e-6) for row in metrics["policies"].values())
    assert metrics["reward"]["pair_accuracy"] == 0.725
    assert metrics["reward"]["pair_accuracy_ceiling"] == 0.75
    assert metrics["sft"]["rating"] == 0.0
    low, high = metrics["policies"]["ppo"]["rating_ci"]
    assert 0 < low < metrics["policies"]["ppo"]["rating"] < high


def test_groups_are_shown_where_they_have_reward_models(html: str, tmp_path: Path) -> None:
    """The worked example of four groups as a question; a name and an answer that would like to be markup."""
    assert 'id="groups"' not in html
    write_run(tmp_path, METHODS, prompts=8)
    names, reward = ["g1", "g2", "g3", "<b>g4</b>"], tmp_path / "artifacts" / "reward"
    ratings = [[1, 1, 2], [2, 1, 2], [3, 1, 0], [0, 2, 3]]
    rows = [
        {"prompt": "What is it?", "answer": f" <i>y{k}</i>", "ended": True, "group": name, "score": float(own[k])}
        for name, own in zip(names, ratings, strict=True)
        for k in range(3)
    ]
    write_table(pd.DataFrame(rows), reward / "group_scores.parquet", GROUP_SCORES)
    agreement = {u: {v: 0.9 if u == v else 0.25 for v in names} for u in names}
    told = {"groups": names, "annotators": {"ann": "g1", "bob": "g1", "eve": "g2"}, "agreement": agreement}
    write_json(reward / "groups.json", told)
    for policy, rate in (("dpo", 0.375), ("ppo", 0.625)):
        file = tmp_path / "artifacts" / "evaluations" / policy / "metrics.json"
        groups = {name: {"reward_mean": 0.1, "win_rate": rate if name == "g3" else 0.75} for name in names}
        worst = {"groups": groups, "worst_group": "g3", "worst_group_win_rate": rate}
        write_json(file, json.loads(file.read_text(encoding="utf-8")) | worst)
    run = findings.gather(tmp_path / "artifacts", METHODS, Evaluate(), seed=1)
    page_html = page.render(run, [], examples=2)
    text = " ".join(text for _, text in Visible(page_html).found)
    assert "g1: ann, bob." in text
    assert "Worst off under dpo: g3 (37.5\u00a0%); ppo: g3 (62.5\u00a0%)." in text.replace(" %", "\u00a0%")
    assert "The answer whose worst group likes it most is y2." in text
    assert "0.881 0.953 0.731" in text
    assert "25.0" in text
    assert "<b>g4</b>" not in page_html
    assert "<i>y1</i>" not in page_html


def test_the_examples_are_the_first_in_hash_order(gathered: findings.Findings, html: str) -> None:
    # sha256: "a" ca978..., "b" 3e23e..., "c" 2e7d2...
    assert in_hash_order(["a", "b", "c", "a"]) == ["c", "b", "a"]
    texts = gathered.samples["sft"].drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
    expected = [texts[id_] for id_ in in_hash_order(texts.index)[:10]]
    assert [text for tag, text in Visible(html).found if tag == "p" and text in set(texts)] == expected


def test_texts_of_models_cannot_become_markup(gathered: findings.Findings, html: str) -> None:
    assert "alert(1)</script>" not in html
    assert len(re.findall("<script", html)) == 2
    data = re.search(r'<script type="application/json" id="samples">(.*?)</script>', html, re.S)
    assert data
    rows = json.loads(data.group(1))["rows"]
    assert len(rows) == sum(map(len, gathered.samples.values()))
    assert [row[3] for row in rows if row[1] == 0 and row[2] == "A"] == [NASTY] * 40


def test_nothing_names_a_network_a_host_or_a_path(html: str, drawn: list[plots.Plot], tmp_path: Path) -> None:
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    for text in (html, *(plot.svg for plot in drawn)):
        assert not any(str(place) in text for place in (tmp_path.parent, ROOT, Path.home()))
        assert "<dc:date>" not in text


def test_ids_are_unique_and_their_references_resolve(html: str) -> None:
    ids = Visible(html).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', html)) <= set(ids)


def test_plots_are_whole_svg_and_take_the_colours_of_the_page(drawn: list[plots.Plot]) -> None:
    names = [plot.name for plot in drawn]
    assert len(names) == len(set(names))
    assert {"reward", "kl", "frontier", "sft_loss", "reward_loss", "reward_accuracy", "dpo_accuracy", "dpo_margin"} <= set(names)
    for plot in drawn:
        ElementTree.fromstring(plot.svg)
        inside = inline(plot)
        ElementTree.fromstring(inside)
        assert "var(--" in inside
        assert not set(SERIES) & set(re.findall("#[0-9a-f]{6}", inside))
        assert re.findall("#[0-9a-f]{6}", inside) == []


def test_a_history_without_a_known_column_draws_nothing(gathered: findings.Findings) -> None:
    bare = {name: pd.DataFrame({"step": [1, 2]}) for name in gathered.histories}
    names = [plot.name for plot in plots.draw(findings.Findings(**(vars(gathered) | {"histories": bare})))]
    assert names == ["frontier", "over_optimisation", "gold_distribution", "proxy", "reliability"]


def test_a_held_out_judge_is_drawn_beside_the_reward(gathered: findings.Findings, drawn: list[plots.Plot]) -> None:
    """Where a recipe names one; and the disagreement of an ensemble."""
    watched = gathered.histories["ppo"].assign(**{"judge/held_out": 0.5, "reward/disagreement": 0.2})
    changed = findings.Findings(**(vars(gathered) | {"histories": gathered.histories | {"ppo": watched}}))
    added = {plot.name: plot.section for plot in plots.draw(changed)}
    assert {name: added.pop(name) for name in ("held_out", "disagreement")} == {"held_out": "training", "disagreement": "more"}
    assert list(added) == [plot.name for plot in drawn]


def test_what_the_detectors_found_is_shown(html: str) -> None:
    text = " ".join(text for _, text in Visible(html).found)
    assert "alarm D8, clip fraction, from step 5" in text
    assert "the learning rate is too high" in text
    assert "dpo: which stage is at fault" in text
    assert "guarantee nothing" in text


def test_what_a_run_has_done_by_itself_is_shown(gathered: findings.Findings) -> None:
    action = {"step": 20, "detector": "D9", "action": "roll_back", "after": 10}
    acting = findings.Findings(**(vars(gathered) | {"actions": {"ppo": [action]}}))
    shown = page.render(acting, [], examples=1, audited=audited(gathered))
    assert "<b>ppo</b> acted at step 20: rolled back to step 10 (D9, entropy collapse)</span>" in shown
    assert "acted at" not in page.render(gathered, [], examples=1, audited=audited(gathered))


def test_suites_are_among_the_figures(gathered: findings.Findings) -> None:
    """A row a figure; a dash where a model was not asked."""
    sft = gathered.metrics["sft"] | {"suites": {"tone": {"rows": 2, "accuracy": 0.75, "reward_accuracy": 0.5}}}
    ppo = gathered.metrics["policies"]["ppo"] | {"suites": {"tone": {"rows": 2, "accuracy": 0.25}}}
    metrics = gathered.metrics | {"sft": sft, "policies": gathered.metrics["policies"] | {"ppo": ppo}}
    shown = page.render(findings.Findings(**(vars(gathered) | {"metrics": metrics})), [], examples=1)
    rows = dict(re.findall(r'<tr><th scope="row">tone: ([^<]+)</th>(.*?)</tr>', shown))
    cells = {label: re.findall(r">([^<]+)<", row) for label, row in rows.items()}
    assert cells == {
        "rows": ["2", "–", "2"], "accuracy": ["0.750", "–", "0.250"], "reward accuracy": ["0.500", "–", "–"]
    }  # fmt: skip


def test_a_run_without_policies_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path, {}, prompts=3)
    alone = findings.gather(tmp_path / "artifacts", {}, Evaluate(), seed=1)
    assert "No policy was trained" in page.render(alone, plots.draw(alone), examples=10)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    if found() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): the page is not opened in a browser")
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(browser())
        except RuntimeError as error:
            pytest.skip(f"Chromium does not start on this machine ({error}): the page is not opened in a browser")
        yield opened


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
def test_in_a_browser_nothing_fails_loads_or_overflows(tab: Browser, html: str, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    tab.open(tmp_path / "index.html", width, dark=dark)
    tab.value("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll') && !e.closest('svg') && !e.closest('thead')"
    )
    wide += f" && e.getBoundingClientRect().right > {width} + 0.5).map((e) => e.outerHTML.slice(0, 80))"
    assert tab.value(wide) == []
    assert tab.value("document.querySelectorAll('#rows tr').length") == 30
    assert tab.problems() == []
    assert tab.requests() == []
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert light < 60 if dark else light > 200


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_opened_copy_is_as_good(
    tab: Browser, html: str, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seeds and the lineage, whose hashes are long words; its links load nothing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    policy = {"gold_mean": 0.4, "reward_mean": 1.0, "kl": 3.0, "win_rate": 0.7, "win_rate_ci": [0.5, 0.9]}
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    source = tmp_path / "artifacts" / "report" / "index.html"
    source.parent.mkdir(parents=True)
    source.write_text(html, encoding="utf-8")
    (tmp_path / ".runs").mkdir()
    reports = {1: {"policies": {"ppo": policy}}, 2: {"policies": {"ppo": policy}}}
    seeds.write(tmp_path / seeds.RESULT, reports, {1: 0, 2: 0}, publish.parameters(tmp_path))
    made = publish.report(tmp_path, 32 * "a", "")
    assert made is not None
    tab.open(made, width)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("[...document.querySelectorAll('body > section')].map((e) => e.id)") == ["seeds", "lineage"]
    assert tab.value("document.querySelector('#lineage a').href") == f"https://mlflow.example.org/#/runs/{32 * 'a'}"
    assert tab.problems() == []
    assert tab.requests() == []


def test_in_a_browser_answers_are_compared_side_by_side(tab: Browser, html: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    tab.open(tmp_path / "index.html", 1280)
    set_to = "(id, value, kind) => { const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event(kind)); }"
    count = "document.getElementById('count').textContent"
    assert tab.value("[document.getElementById('model').value, document.getElementById('against').value]") == ["ppo", "sft"]
    assert tab.value(count) == "160 comparisons"  # 40 prompts, three sampled answers and the greedy one
    tab.value(f"({set_to})('query', 'LEFT script', 'input')")  # words in any order, any case; markup is shown as text
    assert tab.value(count) == "40 comparisons"
    assert NASTY in tab.value("document.querySelector('#rows td.t:nth-child(3) .text').textContent")
    tab.value("document.getElementById('more').click()")
    assert tab.value("document.querySelectorAll('#rows tr').length") == 40
    assert tab.value("document.getElementById('more').hidden") is True
    tab.value(f"({set_to})('query', '', 'input')")
    gaps = "[...document.querySelectorAll('#rows td.n')].map((e) => Number(e.textContent.replace('−', '-')))"
    for order, reverse in (("worst", False), ("best", True)):
        tab.value(f"({set_to})('order', '{order}', 'change')")
        shown = tab.value(gaps)
        assert len(shown) == 30
        assert shown == sorted(shown, reverse=reverse)
    tab.value(f"({set_to})('against', 'ppo', 'change')")  # against itself: one answer a row
    assert tab.value(count) == "160 answers"
    assert tab.value("document.querySelectorAll('#rows tr:first-child td.t').length") == 1
    assert tab.problems() == []


def test_in_a_browser_the_differences_are_marked(tab: Browser, gathered: findings.Findings, tmp_path: Path) -> None:
    """The longest common run of words in order is left bare: of "a b c d" against "x b d" the words a and c, and x."""
    samples = {name: table.copy() for name, table in gathered.samples.items()}
    for name, text in (("ppo", " a b  c d"), ("sft", " x b d")):
        samples[name]["text"] = text
    changed = findings.Findings(**(vars(gathered) | {"samples": samples}))
    (tmp_path / "index.html").write_text(page.render(changed, [], examples=1), encoding="utf-8")
    tab.open(tmp_path / "index.html", 390)
    cells = [
        f"[...document.querySelectorAll('#rows tr:first-child td.t:nth-child({n}) mark')].map((e) => e.textContent)"
        for n in (2, 3)
    ]
    assert [tab.value(cell) for cell in cells] == [["a", "c"], ["x"]]
    assert tab.value("document.querySelector('#rows td.t:nth-child(2) .text').textContent") == "a b  c d"


def test_what_was_measured_of_the_data_is_on_the_page(html: str) -> None:
    """Each table of quality.json with its counts, every other fact with its path."""
    shown = " ".join(html.split())
    assert "<dt>dropped, too short</dt><dd>12,345</dd>" in shown
    assert "<dt>prompts in two splits</dt><dd>0</dd>" in shown
    counts = "".join(f'<td class="n">{count}</td>' for count in ("1,500", "1,372", "64", "64", "38", "0"))
    assert f'<th scope="row">demonstrations</th>{counts}<td>completion 9, prompt 9</td>' in shown
