"""A Ray cluster of two nodes on this host, for trying out what a real cluster does: ``python infra/two_nodes.py start|stop``.

``start`` prints the address for ``runtime.ray.address`` (or PREFLOOP_RAY_ADDRESS) and leaves the nodes running; ``stop``
ends them by their process groups (``ray stop`` would end every Ray of the host). Token authentication is on, with the
project's token (.runs/ray/token). Each node offers ``--cpus`` CPUs, so two workers of one CPU land on two nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.adapters.session import write_token  # noqa: E402  (the script is called by its path)

START_SECONDS = 90.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}


@contextmanager
def two_nodes(root: Path, cpus: int = 1) -> Iterator[str]:
    """Both nodes for as long as the context lasts; yields the address."""
    try:
        yield start(root, cpus)
    finally:
        stop(root)


def start(root: Path, cpus: int = 1) -> str:
    """Start a head and a second node, wait until both answer, and return the address of the cluster."""
    state = _state(root)
    if state.exists():
        raise SystemExit(f"{state} says that nodes run already; `python infra/two_nodes.py stop` first")
    token = root / ".runs" / "ray" / "token"
    write_token(token)
    environment = {**os.environ, **QUIET, "RAY_AUTH_TOKEN_PATH": str(token)}
    host, port, client_port = "127.0.0.1", _free_port(), _free_port()
    folder = tempfile.mkdtemp(prefix="two-nodes-", dir="/tmp")
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={client_port}"]
    head.append(f"--temp-dir={folder}")  # or every later ray.init() on this machine would look for this cluster
    nodes: list[int] = []
    for arguments in (head, [f"--address={host}:{port}"]):
        nodes.append(_node([*arguments, f"--node-ip-address={host}", f"--num-cpus={cpus}"], root, environment))
        state.write_text(json.dumps({"address": f"{host}:{port}", "nodes": nodes, "folder": folder}), encoding="utf-8")
        _wait(f"{host}:{port}", len(nodes), nodes, environment)
    return f"{host}:{port}"


def stop(root: Path) -> None:
    """End both nodes: politely, then for good."""
    state = _state(root)
    if not state.exists():
        return
    known = json.loads(state.read_text(encoding="utf-8"))
    groups = known["nodes"]
    for number, seconds in ((signal.SIGTERM, 4.0), (signal.SIGKILL, 5.0)):
        for group in reversed(groups):
            _signal(group, number)
        deadline = time.monotonic() + seconds
        while any(_runs(group) for group in groups) and time.monotonic() < deadline:
            time.sleep(0.1)
    shutil.rmtree(known["folder"], ignore_errors=True)
    state.unlink()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _state(root: Path) -> Path:
    return root / ".runs" / "ray" / "two_nodes.json"


def _node(arguments: list[str], root: Path, environment: dict[str, str]) -> int:
    """One ``ray start --block`` in a process group of its own; returns the group's id."""
    (root / ".runs" / "ray").mkdir(parents=True, exist_ok=True)
    with (root / ".runs" / "ray" / "two_nodes.log").open("ab") as log:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--block", "--disable-usage-stats"]
        store = f"--object-store-memory={128 * 2**20}"
        node = subprocess.Popen(
            [*command, store], cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    return node.pid


def _wait(address: str, count: int, groups: list[int], environment: dict[str, str]) -> None:
    """Ask the cluster from another process (this one keeps no connection) until ``count`` nodes are alive."""
    ask = (
        "import sys, ray; from ray._raylet import GcsClient\n"
        "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5).values()\n"
        "print(sum(node.state == 0 for node in nodes))"
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and all(_runs(group) for group in groups):
        done = subprocess.run([sys.executable, "-c", ask, address], env=environment, capture_output=True, text=True)
        if done.stdout.strip() == str(count):
            return
        time.sleep(0.5)
    raise SystemExit(f"node {count} did not come up within {START_SECONDS:.0f} s; see .runs/ray/two_nodes.log")


def _runs(group: int) -> bool:
    """Whether any process of the group is left; collects our own child."""
    with suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    return _signal(group, 0)


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that each node offers (1)")
    chosen = parser.parse_args()
    if chosen.action == "start":
        print(start(Path.cwd(), chosen.cpus))
    else:
        stop(Path.cwd())
