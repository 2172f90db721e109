"""The registry (MLflow's model versions, tags and aliases) behind plain words; who is champion is decided in tasks/ledger.py."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.adapters import recorder
from pipelines.adapters.machine import ENVIRONMENT
from pipelines.adapters.spool import store_uri
from pipelines.errors import ConfigurationError, EnvironmentFault

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CONTENT = "prefloop.content"
REFERENCE = re.compile(r"^(?:models:/(?P<name>[^/@]+))?(?:/(?P<number>\d+)|@(?P<alias>[\w-]+))$")
FOLDER = "model"
DVC = "dvc://"
"""A version's source where the weights stay in DVC: ``dvc://TAG/PATH``."""


@dataclass(frozen=True)
class Version:
    """One registered model: ``number`` as MLflow counts, ``tags`` as they were when it was read."""

    name: str
    number: str
    source: str
    run: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """What MLflow and people call it."""
        return f"models:/{self.name}/{self.number}"

    @property
    def copied(self) -> bool:
        """Whether MLflow holds the weights."""
        return not self.source.startswith(DVC)


class Registry:
    """One registered model in the project's store. Errors of the store are raised as EnvironmentFault of one line."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.uri = store_uri(root)
        self.client, self._experiment = _connected(root)

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        found = self.client.search_model_versions(f"name = '{self.name}'", max_results=1000)
        return sorted((_version(one) for one in found), key=lambda version: -int(version.number))

    def with_content(self, content: str) -> Version | None:
        """The version whose weights and tokenizer have this hash; None where there is none."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tags.`{CONTENT}` = '{content}'")
        return _version(min(found, key=lambda one: int(one.version))) if found else None

    def version(self, reference: str) -> Version:
        """``3``, ``champion``, ``models:/NAME/3`` or ``models:/NAME@champion``; ConfigurationError where it names nothing."""
        text = f"/{reference}" if reference.isdigit() else f"@{reference}" if re.fullmatch(r"[\w-]+", reference) else reference
        match = REFERENCE.match(text)
        if not match or match["name"] not in (None, self.name):
            raise ConfigurationError(
                f"{reference}: not a version; write a number, an alias (champion), or models:/{self.name}@champion"
            )
        number = match["number"] or self.aliases().get(match["alias"], "")
        for version in self.versions():
            if version.number == number:
                return version
        known = ", ".join([version.number for version in self.versions()][:10]) or "none yet (`prefloop register`)"
        raise ConfigurationError(f"{reference}: the registered model {self.name} has no such version; versions: {known}")

    def aliases(self) -> dict[str, str]:
        """Alias -> version number; empty where nothing is registered yet."""
        from mlflow.exceptions import MlflowException

        try:
            return {name: str(number) for name, number in self.client.get_registered_model(self.name).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    def set_alias(self, alias: str, number: str) -> None:
        """Point an alias at a version; "" removes the alias."""
        if number:
            self.client.set_registered_model_alias(self.name, alias, number)
        else:
            self.client.delete_registered_model_alias(self.name, alias)

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, number, key, value)

    def create(self, model: Path | None, extras: Path, tags: Mapping[str, str], described: str, source: str = "") -> Version:
        """A new version of what ``model`` (weights; None = they stay at ``source``) and ``extras`` hold, under one MLflow run."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run = self.client.create_run(self._experiment, run_name=f"register {self.name}", tags={"prefloop.kind": "registration"})
        for folder in (model, extras):
            if folder is not None:
                self.client.log_artifacts(run.info.run_id, str(folder), FOLDER)
        self.client.set_terminated(run.info.run_id, "FINISHED")
        place = source or f"{run.info.artifact_uri}/{FOLDER}"
        made = self.client.create_model_version(
            self.name, place, run_id=run.info.run_id, tags=dict(tags), description=described[:4000]
        )
        return _version(made)

    def fetch(self, version: Version, to: Path, path: str = "") -> Path:
        """Copy what MLflow holds of a version (all of it, or one file or folder in it) below ``to``; return where it lies.

        By its run and through this client: MLflow resolves ``models:/...`` with the process's registry, which may be another.
        """
        to.mkdir(parents=True, exist_ok=True)
        return Path(self.client.download_artifacts(version.run, f"{FOLDER}/{path}".rstrip("/"), str(to)))

    def located(self, version: Version, spare: Path) -> Path:
        """Where a version's files can be read: in place where the store is on this machine, else fetched below ``spare``."""
        from mlflow.artifacts import download_artifacts

        if version.source.startswith(("file:", "/")):
            return Path(download_artifacts(artifact_uri=version.source))
        return self.fetch(version, spare)

    def read(self, version: Version, file: str) -> bytes:
        """One small file that was registered with a version (``manifest.json``, ``lineage.json``)."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="prefloop-") as folder:
            try:
                return self.fetch(version, Path(folder), file).read_bytes()
            except (MlflowException, OSError) as error:
                reason = str(error).splitlines()[0][:200]
                raise EnvironmentFault(f"{version.uri}: {file} is not in its artifacts ({reason})") from error


def run_facts(root: Path, outs: str) -> tuple[dict[str, float], dict[str, str]]:
    """The final metrics and the environment of the newest finished run that made the outputs with this ``outs_hash``; empty
    where none is known."""
    client, experiment = recorder.connect(root)
    query = f"attributes.status = 'FINISHED' and tags.`prefloop.outs_hash` = '{outs}'"
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    if not runs:
        return {}, {}
    figures = {key: float(value) for key, value in runs[0].data.metrics.items()}
    return figures, json.loads(runs[0].data.tags.get(ENVIRONMENT, "{}"))


def _connected(root: Path) -> tuple[MlflowClient, str]:
    try:
        return recorder.connect(root)
    except Exception as error:  # MLflow's stores raise their own, SQLAlchemy's and requests' exceptions
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        raise EnvironmentFault(f"MLflow cannot be reached ({type(error).__name__}: {reason}); see MLFLOW_TRACKING_URI") from error


def _version(found: ModelVersion | Any) -> Version:
    tags = {str(key): str(value) for key, value in (found.tags or {}).items()}
    return Version(found.name, str(found.version), str(found.source), str(found.run_id or ""), tags)
