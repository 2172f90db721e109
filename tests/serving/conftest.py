"""Apart from tests/registry: what serves here is a Prefect server of its own, and that package's is still there until it ends."""

from __future__ import annotations

from tests.registry.conftest import built, project  # noqa: F401
