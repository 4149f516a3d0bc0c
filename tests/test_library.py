"""llmcli as a library: ``load``, ``generate`` and ``steps``."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli.errors import LlmcliError
from llmcli.generation.filters import FILTERS, Temperature, TopP
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.hub import default_model, find

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return llmcli.load()


def test_every_public_name_is_listed_and_documented() -> None:
    assert set(llmcli.__all__) <= set(dir(llmcli))
    text = pydoc.plain(pydoc.render_doc(llmcli))
    for name in ("load", "generate", "steps"):
        assert f"    {name}(" in text
        function = getattr(llmcli, name)
        assert inspect.getdoc(function)
        assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values())


def test_importing_llmcli_and_listing_its_names_imports_no_torch() -> None:
    code = "import sys, llmcli; dir(llmcli); llmcli.explain; llmcli.render; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", [default_model(), find(default_model()), str(find(default_model()))], ids=type)
def test_a_model_is_opened_by_name_or_folder(name: str | Path, shipped: LoadedModel) -> None:
    loaded = llmcli.load(name)
    assert loaded.name == shipped.name
    assert loaded.folder == shipped.folder


def test_generate_is_the_loop_with_its_text(shipped: LoadedModel) -> None:
    generation = llmcli.generate(shipped, PROMPT, max_new_tokens=12, temperature=0.7, top_p=0.9, seed=3)
    pairs = list(generation)
    ids = shipped.prompt_ids(PROMPT)
    sampler = Sampler([*shipped.vocabulary_filter(), Temperature(0.7), TopP(0.9)], 3)
    expected = llmcli.steps(shipped.model, ids, sampler=sampler, max_new_tokens=12, stop_ids=shipped.stop_ids)
    assert [step.token for step, _ in pairs] == [step.token for step in expected]
    assert "".join(text for _, text in pairs) == generation.text
    assert (generation.tokens, generation.finish) == (12, "length")
    again = llmcli.generate(shipped, ids, max_new_tokens=12, temperature=0.7, top_p=0.9, seed=generation.sampler.seed)
    assert [step.token for step, _ in again] == [step.token for step, _ in pairs]


def test_filters_that_are_not_given_come_from_the_model(shipped: LoadedModel) -> None:
    chain = {filter.name: filter.value for filter in llmcli.generate(shipped, PROMPT, top_k=5).sampler.filters}
    own = shipped.defaults.sampling
    defaults = {name: own.get(name, cls.option.default) for name, cls in FILTERS.items()} | {"top-k": 5}
    chain.pop("vocabulary", None)
    assert chain == {name: value for name, value in defaults.items() if value != FILTERS[name].option.off}


def test_a_stop_string_ends_the_text(shipped: LoadedModel) -> None:
    whole = llmcli.generate(shipped, PROMPT, max_new_tokens=40, temperature=0)
    for _ in whole:
        pass
    stop = whole.text.split()[3]
    for given in (stop, [stop]):
        generation = llmcli.generate(shipped, PROMPT, max_new_tokens=40, temperature=0, stop=given)
        assert "".join(text for _, text in generation) == whole.text.partition(stop)[0]
        assert generation.finish == "stop_string"


def test_wrong_arguments(shipped: LoadedModel) -> None:
    wrong: Any = {"tempreature": 1.0}
    with pytest.raises(TypeError, match="unknown filter 'tempreature'"):
        llmcli.generate(shipped, PROMPT, **wrong)
    with pytest.raises(LlmcliError, match="top-p must be from 0 to 1, not 3"):
        llmcli.generate(shipped, PROMPT, top_p=3)
    with pytest.raises(LlmcliError, match="has room for at most"):
        next(iter(llmcli.generate(shipped, [1] * 5000)))
    with pytest.raises(LlmcliError):
        llmcli.load("no such model", offline=True)
