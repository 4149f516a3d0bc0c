"""A server of several models: clients choose by name, and the others load when they are asked for."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from llmcli.commands.serve import check_names
from llmcli.errors import LlmcliError
from llmcli.generation import LoadedModel
from llmcli.generation.generate import generate
from llmcli.hub import default_model, find
from tests.serve.conftest import post, server


def test_clients_choose_among_models(folder: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    shipped = default_model()
    options = ("-m", str(folder), "--models", str(find(shipped)), "--models", str(damaged), "--threads", "1")
    with server(*options) as (url, process):

        def names() -> dict[str, bool]:
            with urlopen(f"{url}/v1/models") as answer:
                return {model["id"]: "max_model_len" in model for model in json.load(answer)["data"]}

        def write(model: str) -> str:
            body = {"model": model, "prompt": "The fox", "max_tokens": 8, "seed": 3}
            status, answer = post(f"{url}/v1/completions", body)
            assert (status, answer["model"]) == (200, model), answer
            text: str = answer["choices"][0]["text"]
            return text

        assert names() == {"tales": True, shipped: False, "damaged": False}
        with ThreadPoolExecutor(6) as pool:
            texts = list(pool.map(write, ["tales", shipped] * 3))
        assert set(texts) == {"".join(part for _, part in generate(loaded, "The fox", max_new_tokens=8, seed=3))}
        assert names() == {"tales": True, shipped: True, "damaged": False}
        for _ in range(2):  # a second request tries again
            status, answer = post(f"{url}/v1/completions", {"model": "damaged", "prompt": "x"})
            assert (status, answer["error"]["code"]) == (503, "model_not_loaded")
            assert str(tmp_path) not in answer["error"]["message"]
        status, answer = post(f"{url}/tokenize", {"model": "gpt", "content": "x"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert shipped in answer["error"]["message"]
        with urlopen(f"{url}/metrics") as answer:
            metrics = answer.read().decode()
        for model in ("tales", shipped):
            assert f'llmcli_generated_tokens_total{{model="{model}"}} 24\n' in metrics
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert log.count("damaged cannot be loaded: ") == 2
    assert log.count(f"{shipped} loaded in ") == 1


def test_models_with_the_same_name_are_an_error() -> None:
    check_names(["a", "b"])
    with pytest.raises(LlmcliError, match="two models are called a"):
        check_names(["a", "b", "a"])
