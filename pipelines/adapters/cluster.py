"""Ray, seen from a stage: local mode in the process, or worker groups and actors on a cluster.

``runtime.workers: 0`` runs Ray Train's local mode: the same function, in the stage's process, without a Ray runtime.
1 or more: a worker group a training function, an actor a shard of what is mapped, on the cluster at
``runtime.ray.address``, at PREFLOOP_RAY_ADDRESS, or on one that is started here and stopped afterwards. Workers see the
project at the same path as the driver (one machine, or a shared file system). Ray's imports stay inside functions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.adapters.session import ADDRESS, QUIET, first_line, joined, resources_of, started, threads_of
from pipelines.adapters.worker import Frame, Mapper, device_here, record, train_here
from pipelines.config import Runtime
from pipelines.context import Cluster, Worker
from pipelines.errors import EnvironmentFault, PrefloopError
from pipelines.journal import Journal

MAX_FAILURES = 3


@contextmanager
def connect(runtime: Runtime, journal: Path) -> Iterator[Cluster]:
    """Yield the cluster of one stage; what it started is gone when the context is left, also on Ctrl-C."""
    os.environ.update(QUIET)
    if runtime.workers == 0:
        yield Local(runtime, journal.resolve())
        return
    with contextlib.ExitStack() as stack:
        address = runtime.ray.address or os.environ.get(ADDRESS, "")
        stack.enter_context(joined(address) if address else started(runtime))
        rays = Rays(runtime, journal.resolve())
        _check_room(rays)
        stack.callback(rays.release)
        yield rays


@contextmanager
def start_local(runtime: Runtime) -> Iterator[str]:
    """Start a cluster on this machine for all stages of a flow; yield its address and set PREFLOOP_RAY_ADDRESS.

    It dies with this process, whatever ends it. Where ``runtime.ray.address`` or the environment names a cluster, that
    address is yielded; "" where there are no workers.
    """
    if runtime.workers == 0 or (known := runtime.ray.address or os.environ.get(ADDRESS, "")):
        yield known if runtime.workers else ""
        return
    os.environ.update(QUIET)
    with started(runtime) as address:
        os.environ[ADDRESS] = address
        try:
            yield address
        finally:
            os.environ.pop(ADDRESS, None)


@dataclass
class Local:
    """Everything in the stage's own process."""

    runtime: Runtime
    journal: Path
    workers: int = 0

    def train(self, function: Callable[[Any, Worker], None], job: Any, scratch: Path) -> None:
        """See ``context.Cluster``. Ray Train's local mode: 0.7 s of imports, no runtime, no second process."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        worker = self._worker("train", function)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        TorchTrainer(
            lambda: function(job, worker),
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name=scratch.name),
        ).fit()

    def map(self, function: Callable[[Any, Sequence[Any], Worker], list], job: Any, items: Sequence[Any]) -> list:
        """See ``context.Cluster``."""
        return function(job, items, self._worker("map", function)) if items else []

    def _worker(self, call: str, function: Callable) -> Worker:
        record(self.journal, call, function, rank=0, node="", actor="")
        return Worker(0, 1, device_here(self.runtime.gpus_per_worker), Journal(self.journal))


@dataclass
class Rays:
    """Worker groups and actors of a cluster to which this process is connected."""

    runtime: Runtime
    journal: Path
    _actors: list[Any] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """The number of worker processes."""
        return self.runtime.workers

    def train(self, function: Callable[[Any, Worker], None], job: Any, scratch: Path) -> None:
        """See ``context.Cluster``.

        The retries are counted here and not by Ray's FailureConfig, which starts a whole group again, three times, for
        an error that would only come again: a person's mistake (PrefloopError) or a defect. A dead worker is retried.
        """
        self.release()  # idle actors hold the CPUs that the group waits for
        config = {"frame": self._frame(), "function": function, "job": job}
        for attempt in range(1, MAX_FAILURES + 2):
            failure = _unless_interrupted(lambda: self._fit(config, scratch))
            if failure is None:
                return
            if attempt > MAX_FAILURES:
                raise RuntimeError(f"workers died {attempt} times, the last time with: {failure}")
            _free_places()
            print(f"warning: a worker died ({failure}); going on from the newest checkpoint", file=sys.stderr, flush=True)

    def _fit(self, config: dict[str, Any], scratch: Path) -> str | None:
        """One worker group from start to end: None when it has finished, the reason when a worker has died."""
        from ray.exceptions import RayActorError
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

        gpus = self.runtime.gpus_per_worker
        trainer = TorchTrainer(
            train_here,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=self.workers, use_gpu=gpus > 0, resources_per_worker=resources_of(self.runtime)
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(scratch.resolve() / "ray"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            return _died(error.worker_failures)
        except (ControllerError, RayActorError) as error:
            return first_line(error)
        return None

    def map(self, function: Callable[[Any, Sequence[Any], Worker], list], job: Any, items: Sequence[Any]) -> list:
        """See ``context.Cluster``. The actors stay for the stage's next map, with whatever the function has cached."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if not items:
            return []
        shards = _cut(items, self.workers)
        while len(self._actors) < len(shards):
            self._actors.append(self._actor())
        calls = [
            actor.call.remote(function, job, shard, rank, len(shards))
            for rank, (actor, shard) in enumerate(zip(self._actors, shards, strict=False))
        ]
        try:
            return [item for part in ray.get(calls) for item in part]
        except RayTaskError as error:
            for call in calls:
                ray.cancel(call)  # or the shards still at work are tried again when their actors end
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except RayActorError as error:
            raise RuntimeError(f"an actor died {MAX_FAILURES + 1} times: {first_line(error)}") from None

    def release(self) -> None:
        """Give the actors' CPUs back."""
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors.clear()

    def _actor(self) -> Any:
        import ray

        need = resources_of(self.runtime)
        remote = ray.remote(
            num_cpus=need["CPU"],
            num_gpus=need.get("GPU", 0),
            max_restarts=MAX_FAILURES,
            max_task_retries=MAX_FAILURES,
            scheduling_strategy="SPREAD",
        )
        return remote(Mapper).remote(self._frame())

    def _frame(self) -> Frame:
        import torch

        runtime = self.runtime
        return Frame(Path.cwd(), self.journal, threads_of(runtime), torch.initial_seed(), runtime.gpus_per_worker, runtime.shard)


def _free_places() -> None:
    """Give back the CPUs that a worker group of this process still has after its end.

    Ray Train forgets the placement group of a group of which a worker has died while it started; the next would wait for it.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    job = ray.get_runtime_context().get_job_id()  # the end of the names of all that this process has made
    for name, known in placement_group_table().items():
        if name.endswith(job) and known["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _unless_interrupted(call: Callable[[], str | None]) -> str | None:
    """Run ``call`` in a thread and wait here: in the main thread Ray Train would put its own handler on SIGINT, which
    waits for the controller; so Ctrl-C and SIGTERM end the wait at once, and leaving the context ends the workers."""
    results: list[str | None] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # handed to the waiting thread whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]


def _died(failures: dict[int, Exception]) -> str:
    """Why a group has failed: raise the first error of the function itself, return the reason where a worker died.

    When one worker dies, the others fail as well (the connection is gone), so a death outweighs their errors; an error
    that a person can mend outweighs all.
    """
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    errors = [getattr(error, "_base_exc", error) for _, error in sorted(failures.items())]
    deaths = [error for error in errors if isinstance(error, RayError | RayTrainError)]
    own = [error for error in errors if error not in deaths]
    for error in own:
        if isinstance(error, PrefloopError):
            raise error
    for error in own:
        if not deaths and not _is_connection(error):
            raise error
    return first_line((deaths or own)[0])


def _is_connection(error: BaseException) -> bool:
    """gloo and nccl tell a lost peer by RuntimeErrors without a class of their own."""
    signs = ("Connection closed by peer", "Connection reset by peer", "NCCL", "gloo")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _cut(items: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Runs of neighbours whose lengths differ by one at the most; none is empty."""
    parts = min(parts, len(items))
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]


def _check_room(rays: Rays) -> None:
    """Ray waits for ever for CPUs that the cluster does not have: say so instead."""
    import ray

    need = resources_of(rays.runtime)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(kind, 0) / amount) for kind, amount in need.items()) for node in nodes)
    if room < rays.workers:
        asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        raise EnvironmentFault(
            f"the Ray cluster has room for {room} workers of {asked}, runtime.workers is {rays.workers}; "
            "lower runtime.workers or runtime.threads, or add nodes"
        )
