"""What the evaluation costs: scoring sampled answers beside drawing them, and the report of ten policies with 10,000 answers.

``python benchmarks/evaluation.py [--parts models report] [--artifacts FOLDER] [--policies ppo ...]``: ``models`` measures the
models that a run has left under artifacts/; ``report`` makes up its tables, so it needs no run. Writes
benchmarks/results/evaluation.json; a part that is not asked for is kept from there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, facts, save

sys.path.insert(0, str(ROOT))

REPEATS = 3
POLICIES, PROMPTS = 10, 334
"""Three sampled answers a prompt: 10,020 of the policies."""


class Clock:
    """A journal that sums the seconds between its lines by their note."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def log(self, step: int, total: int, metrics: Any = None, timings: Any = None, note: str = "") -> None:
        """The time since the last line belongs to this one's note."""
        now = time.perf_counter()
        self.seconds[note] = self.seconds.get(note, 0.0) + now - self.last
        self.last = now


def main() -> None:
    """Measure the parts, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=("models", "report"), default=["models", "report"])
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--policies", nargs="+", default=["sft", "ppo"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(report(Path(options.one)) if "/" in options.one else model(options.artifacts, options.one)))
        return
    kept = RESULTS / "evaluation.json"
    result = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    known = facts("python benchmarks/evaluation.py" + ("" if len(options.parts) == 2 else f" --parts {options.parts[0]}"))
    if "models" in options.parts:
        found = {name: _alone("--one", name, "--artifacts", str(options.artifacts)) for name in options.policies}
        seconds = {name: one["seconds"] for name, one in found.items()}
        result["models"] = {"seconds": seconds, "answers": next(iter(found.values()))["answers"]} | known
    if "report" in options.parts:
        with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
            made(Path(folder))
            result["report"] = _alone("--one", folder) | opened(Path(folder)) | known
    save("evaluation", result)


def model(artifacts: Path, name: str) -> dict[str, Any]:
    """Seconds by what is done for one model, with the default recipe's settings, each phase after its model is loaded.

    Medians over ``REPEATS`` of answering and scoring; everything else once.
    """
    from pipelines.config import load
    from pipelines.context import Worker, make_deterministic
    from pipelines.data.schemas import DEMONSTRATIONS, PHRASINGS, PROMPTS
    from pipelines.data.tables import read_table
    from pipelines.evaluation import answers, language, sensitivity
    from pipelines.judges import make_judge

    params = load(ROOT / "recipes" / "shakespeare.yaml")
    make_deterministic(1, params.runtime.threads)
    prepared, evaluate = artifacts / "prepared", params.evaluate
    prompts = read_table(prepared / "prompts.parquet", PROMPTS)
    test = prompts[prompts["split"] == "test"]
    sft = artifacts / "sft" / "model"
    folder = sft if name == "sft" else artifacts / "policies" / name / "model"
    job = answers.Job(folder, sft, artifacts / "base", artifacts / "reward", evaluate.generation, evaluate.answers,
                      evaluate.precision, 1)  # fmt: skip
    loaded = _without_loading(answers)
    asked = [answers.Prompt(id_, text) for id_, text in zip(test["id"], test["prompt"], strict=True)]
    loaded(job)
    repeats = []
    for _ in range(REPEATS):
        clock = Clock()
        worker = Worker(0, 1, "cpu", clock)  # type: ignore[arg-type]
        rows = answers.answer(job, asked, worker)
        repeats.append(clock.seconds)
    known = {key: statistics.median(one[key] for one in repeats) for key in repeats[0]}
    seconds = {key: known[key] for key in ("greedy answers", "sampled answers", "reward model")}
    readings = known["log-probabilities"]
    share = 1.0 if name == "sft" else 0.5  # equal passes over equal answers: the base model's, and for a policy SFT's
    seconds |= {"base model": readings * share, "KL to SFT": readings * (1 - share)}
    drawn = [row for row in rows if row["answer"] != "greedy"]
    judge = make_judge(params.preferences.judge)
    judge(["warm"], ["up"])
    clock.last = time.perf_counter()
    judge([row["prompt"] for row in drawn], [row["text"] for row in drawn])
    clock.log(1, 1, note="judge")
    seconds["judge"] = clock.seconds["judge"]
    shown = read_table(prepared / "demonstrations.parquet", DEMONSTRATIONS)
    shown = shown[shown["split"] == "test"].head(evaluate.demonstrations)
    clock.last = time.perf_counter()
    read = language.Job(folder, evaluate.generation.batch_size, evaluate.precision)
    language.read_texts(read, list(zip(shown["prompt"], shown["completion"], strict=True)), worker)
    seconds["demonstrations"] = clock.seconds["held-out texts"]
    phrased = read_table(prepared / "phrasings.parquet", PHRASINGS)
    clock.last = time.perf_counter()
    intents = [group["prompt"].tolist() for _, group in phrased.groupby("intent", sort=False)]
    sensitivity.ask(sensitivity.Job(folder, evaluate.generation, evaluate.precision), intents, worker)
    seconds["phrasings"] = clock.seconds["phrasings"]
    return {"seconds": seconds, "answers": len(drawn)}


def _without_loading(module: Any) -> Any:
    """Loads a job's models once and lets ``answer`` find them loaded: reading files is no part of scoring.

    Weights are mapped from their files, so each is touched.
    """
    causal, reward = module.load_causal_lm, module.load_members
    kept: dict[Any, Any] = {}

    def load(job: Any) -> None:
        for folder in {job.policy, job.sft, job.base}:
            kept[folder] = causal(folder, "cpu")
        kept[job.reward] = reward(job.reward, job.sft, "cpu")
        for one in (*(kept[folder] for folder in {job.policy, job.sft, job.base}), *kept[job.reward]):
            sum(float(weight.sum()) for weight in one.parameters())
        module.load_causal_lm = lambda folder, device: kept[folder]
        module.load_members = lambda folder, sft, device: kept[folder]

    return load


def made(folder: Path) -> None:
    """The tables of a finished run of ten policies."""
    from tests.evaluation.synthetic import write_run

    write_run(folder, {f"policy-{i:02d}": ("ppo", "dpo")[i % 2] for i in range(POLICIES)}, prompts=PROMPTS)


def report(folder: Path) -> dict[str, Any]:
    """Seconds and memory of the stage's own work, its imports and reading included."""
    started = time.perf_counter()
    from pipelines.adapters.cluster import connect
    from pipelines.config import Dpo, Ppo
    from pipelines.context import Context
    from pipelines.journal import Journal
    from pipelines.stages import report as stage
    from tests.evaluation.synthetic import params

    entries = {f"policy-{i:02d}": (Ppo(method="ppo"), Dpo(method="dpo"))[i % 2] for i in range(POLICIES)}
    settings = params().model_copy(update={"policies": entries})
    journal = folder / "journal.jsonl"
    with connect(settings.runtime, journal) as cluster:
        stage.run(Context("report", settings, folder, folder / "scratch", Journal(journal), cluster))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answers = POLICIES * PROMPTS * 3
    return {"seconds": time.perf_counter() - started, "peak_rss_bytes": memory, "policies": POLICIES, "answers": answers}


def opened(folder: Path) -> dict[str, Any]:
    """Seconds until the page has loaded and shows its first answers, in a headless Chromium; the best of three."""
    from tests.evaluation.browser import browser

    path = folder / "scratch" / "outs" / "artifacts" / "report" / "index.html"
    with browser() as tab:
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            tab.open(path, 1280)
            assert tab.value("document.querySelectorAll('#rows tr').length") == 30
            seconds.append(time.perf_counter() - started)
    return {"opened": min(seconds), "bytes": path.stat().st_size}


def _alone(*arguments: str) -> dict[str, Any]:
    """This file in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


if __name__ == "__main__":
    main()
