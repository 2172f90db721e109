"""Models from the Hugging Face hub, at a revision: configuration, safetensors and tokenizer, no code."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import ConfigurationError, EnvironmentFault

FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]


def download(id: str, revision: str, section: str) -> Path:
    """The local snapshot of a hub model, fetched where it is not there yet; ``section`` of params.yaml asks for it.

    Raises EnvironmentFault where it cannot be had, ConfigurationError for what is no id.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EnvironmentFault(
            f"hub model {id} at revision {revision}: {reason}; check the network, and id and revision in {section}"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{section}: {id!r}: {' '.join(str(error).split())}") from error
