"""Every detector against one fault injected in a real training, a weak form of it, and clean runs of five seeds.

    python benchmarks/diagnosis.py [--only D5 D8]

Tiny models (tests/diagnosis/faults.py; for served traffic, D21 to D24, tests/diagnosis/traffic.py), a few seconds a run. A
fault counts as found if its detector speaks within 5 steps after its window is full, counted from the first step at which the
unsmoothed signal is beyond the limit (a policy needs time to learn a wrong thing), and names the injected cause first; a fault
of traffic, if it speaks within two windows. Clean runs must say nothing at all. ``--only`` renews some.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, facts, save

sys.path.insert(0, str(ROOT))


TRAFFIC = "served traffic"


def main() -> None:
    """Run what is asked for, one training after the other, on one thread; what was not asked for stays as it was recorded."""
    import torch

    from tests.diagnosis import faults, traffic

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WHAT", help="detectors, and names of clean runs")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    path = RESULTS / "diagnosis.json"
    before = json.loads(path.read_text(encoding="utf-8")) if only and path.exists() else {"cases": {}, "clean": {}}
    cases = {case.detector: measured(case) for case in faults.CASES if not only or case.detector in only}
    clean = {
        name: {str(seed): examined(lambda place, run=run, seed=seed: run(place, seed))[1] for seed in faults.SEEDS}
        for name, run in faults.HEALTHY.items()
        if not only or name in only
    }
    drifting = [case for case in traffic.CASES if not only or case.detector in only]
    if drifting or TRAFFIC in only:
        with tempfile.TemporaryDirectory(prefix="prefloop-diagnosis-") as folder:
            world = traffic.make(Path(folder))
            cases |= {case.detector: drifted(case, world) for case in drifting}
            spoken = {str(seed): traffic.alarms(world, traffic.clean(world, seed)) for seed in faults.SEEDS}
            clean[TRAFFIC] = {seed: [{"detector": name} for name in names] for seed, names in spoken.items()}
    known = {"cases": before["cases"] | cases, "clean": before["clean"] | clean}
    save("diagnosis", {**facts("python benchmarks/diagnosis.py"), **known})


def drifted(case: Any, world: Any) -> dict[str, Any]:
    """One detector of served traffic, window by window."""
    windows, weak = case.run(world), case.miss(world)
    spoke = [number for number, names in enumerate(windows, 1) if case.detector in names]
    result = {
        "fault": case.fault,
        "onset": "window 1",
        "first": f"window {spoke[0]}" if spoke else None,
        "found": bool(spoke),
        "also": sorted({name for names in windows for name in names} - {case.detector}),
        "near": case.near,
        "near_silent": all(case.detector not in names for names in weak),
        "near_also": sorted({name for names in weak for name in names} - {case.detector}),
    }
    print(case.detector, result, flush=True)
    return result


def measured(case: Any) -> dict[str, Any]:
    """One detector: its fault and its near miss."""
    from pipelines.diagnosis import detector_of
    from tests.diagnosis.faults import in_time, onset_of

    record, spoken = examined(case.run)
    detector = detector_of(case.detector)
    hits = detector.find(record)
    _, weak = examined(case.miss)
    result = {
        "fault": case.fault,
        "onset": onset_of(case, record),
        "window": detector.window,
        "warmup": detector.warmup,
        "first": hits[0].step if hits else None,
        "cause": next((one["cause"] for one in spoken if one["detector"] == case.detector), ""),
        "found": in_time(case, record),
        "also": [one["detector"] for one in spoken if one["detector"] != case.detector],
        "near": case.near,
        "near_silent": all(one["detector"] != case.detector for one in weak),
        "near_also": [one["detector"] for one in weak if one["detector"] != case.detector],
    }
    print(
        case.detector,
        {key: result[key] for key in ("onset", "first", "found", "near_silent", "cause", "also", "near_also")},
        flush=True,
    )
    return result


def examined(run: Callable[[Path], Any]) -> tuple[Any, list[dict[str, Any]]]:
    """A training in a folder of its own, and what all detectors say of it."""
    from pipelines.diagnosis import examine

    with tempfile.TemporaryDirectory(prefix="prefloop-diagnosis-") as folder:
        started = time.monotonic()
        record = run(Path(folder))
        seconds = time.monotonic() - started
    found = [
        {"detector": one.detector, "level": one.level, "first_step": one.first_step, "cause": one.causes[0]}
        for one in examine(record)
    ]
    print(
        f"  {seconds:.1f} s, {len(record.history)} steps: {', '.join(one['detector'] for one in found) or 'nothing'}", flush=True
    )
    return record, found


if __name__ == "__main__":
    main()
