"""The stage base: every source gives a plain folder whose tokenizer can pad and stop."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines.adapters.cluster import connect
from pipelines.config import Base, Params, Scratch, load
from pipelines.context import Context, Worker
from pipelines.data import schemas
from pipelines.data.tables import write_table
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from pipelines.journal import Journal, read_from
from pipelines.models import scratch
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.stages import base
from tests import small

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
CORPUS = "artifacts/prepared/corpus.parquet"
SMALL = Scratch(vocabulary=300, hidden_size=16, layers=1, heads=2, context=16, steps=30, batch_size=4)


def _params(**section: Any) -> Params:
    return load(TINY).model_copy(update={"base": Base(**section)})


def _run(root: Path, params: Params) -> tuple[dict[str, float], Path, list[dict]]:
    frame = root / "scratch"
    shutil.rmtree(frame, ignore_errors=True)
    frame.mkdir(parents=True)
    with connect(params.runtime, frame / "journal") as cluster:
        metrics = base.run(Context("base", params, root, frame, Journal(frame / "journal"), cluster))
    return metrics, frame / "outs/artifacts/base", read_from(frame / "journal", 0)[0]


def _corpus(root: Path, split: str = "train") -> Path:
    rows = [{"id": str(n), "group": str(n), "split": split, "text": text * 20} for n, text in enumerate(small.TEXT)]
    write_table(pd.DataFrame(rows), root / CORPUS, schemas.CORPUS)
    return root / CORPUS


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_model_from_scratch_learns_and_gives_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    params = _params(source="scratch", learns_from=CORPUS, scratch=SMALL)
    _corpus(tmp_path / "one")
    metrics, folder, journal = _run(tmp_path / "one", params)
    losses = [line["metrics"]["loss"] for line in journal]
    assert len(losses) == 30
    assert losses[0] == pytest.approx(5.7, abs=0.1)  # ln 300: every token equally likely
    assert losses[-1] < losses[0] - 0.7
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    assert metrics == {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": 300.0}
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    _corpus(tmp_path / "two/deep")
    assert _hashes(_run(tmp_path / "two/deep", params)[1]) == _hashes(folder)


def test_two_ranks_see_the_global_batch_of_one(tmp_path: Path) -> None:
    """Half batches give half the gradient each: their sum is that of the whole batch (checked by its loss)."""
    corpus = _corpus(tmp_path)
    scratch.train_tokenizer(corpus, 300, "").save_pretrained(str(tmp_path / "tokenizer"))
    job = scratch.Job(corpus, tmp_path / "tokenizer", tmp_path / "weights", SMALL.model_copy(update={"steps": 1}))
    scratch.train(job, Worker(0, 1, "cpu", Journal(tmp_path / "journal")))
    whole = read_from(tmp_path / "journal", 0)[0][0]["metrics"]["loss"]
    stream, starts = scratch._stream(job), next(scratch._starts(len(scratch._stream(job)), job.scratch))
    torch.manual_seed(scratch.seed_for("scratch", "weights"))
    model = scratch.build(job)
    halves = [torch.stack([stream[at : at + 16] for at in starts[rank::2]]) for rank in (0, 1)]
    summed = sum(scratch._summed_loss(model, windows).item() for windows in halves) / (4 * 15)
    assert whole == pytest.approx(summed, abs=1e-6)


def test_a_corpus_that_cannot_be_learned_from_is_refused(tmp_path: Path) -> None:
    params = _params(source="scratch", learns_from=CORPUS, scratch=SMALL)
    with pytest.raises(DataError, match="run the stage prepare"):
        _run(tmp_path, params)
    _corpus(tmp_path, split="test")
    with pytest.raises(DataError, match="0 rows in split train"):
        _run(tmp_path, params)


def test_a_local_folder_and_its_special_tokens(tmp_path: Path) -> None:
    small.model_folder(tmp_path / "mine")
    local = {"source": "local", "learns_from": "mine"}
    _, folder, _ = _run(tmp_path, _params(**local))
    assert _hashes(folder)["model.safetensors"] == _hashes(tmp_path / "mine")["model.safetensors"]
    with pytest.raises(ConfigurationError, match=r"'<pad>' is not in the tokenizer's vocabulary.*endoftext"):
        _run(tmp_path, _params(**local, pad_token="<pad>"))
    with pytest.raises(ConfigurationError, match="another token than EOS"):
        _run(tmp_path, _params(**local, pad_token=small.EOS))
    with pytest.raises(ConfigurationError, match="no chat template"):
        _run(tmp_path, _params(**local, prompt_format="chat"))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        _run(tmp_path, _params(source="local", learns_from="nowhere"))
    (tmp_path / "mine/modeling_x.py").write_text("")
    with pytest.raises(DataError, match="holds code"):
        _run(tmp_path, _params(**local))
    (tmp_path / "mine/modeling_x.py").unlink()
    (tmp_path / "mine/model.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="no causal language model"):
        _run(tmp_path, _params(**local))


def test_a_gguf_file_that_is_missing_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="base model missing: no file .* in package no_such_package"):
        _run(tmp_path, _params(package="no_such_package"))
    package = tmp_path / "gguf_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(DataError, match="gguf_package/model.gguf: sha256 is .*, base.sha256 says b179c9"):
        _run(tmp_path, _params(package="gguf_package", file="model.gguf"))


@pytest.mark.slow
def test_the_default_model_stops_and_its_configuration_names_no_place(tmp_path: Path) -> None:
    metrics, folder, _ = _run(tmp_path, _params())
    assert metrics == {"parameters": 134_515_008.0, "vocabulary": 49_152.0}
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    config = json.loads((folder / "config.json").read_text())
    assert (config["pad_token_id"], config["eos_token_id"]) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert not any("path" in key for key in config)
    model = load_causal_lm(folder)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
