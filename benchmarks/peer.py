"""The environment of the peer: TRL 1.12.0, the last release with a PPOTrainer, and everything else as in constraints.txt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRL = "1.12.0"


def environment(place: Path) -> Path:
    """Make a virtual environment below ``place`` (once) and return its interpreter."""
    python, done = place / "venv" / "bin" / "python", place / "installed"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        pins = [
            line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("trl==")
        ]
        (place / "constraints.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
        subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(place / "constraints.txt")]
        subprocess.run([*pip, "torch==2.13.0", f"trl=={TRL}", "pandas", "safetensors"], check=True)
        done.touch()
    return python
