"""The written principles: a YAML file below data/constitutions/."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.config import Section
from pipelines.errors import DataError

Sentence = Annotated[str, Field(min_length=1)]


class Principles(Section):
    """What the file holds: by what is judged."""

    principles: Annotated[list[Sentence], Field(min_length=1)]


def read_principles(path: Path, shown: str) -> Principles:
    """Read the file. Raises DataError with its name and what is wrong with it."""
    try:
        return Principles.model_validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{shown}: {error.strerror or error}; write the principles there, or name another file") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{shown}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{shown}: {where}: {first['msg']}; it needs principles: and a list of sentences") from error
