"""llmcli as a library: ``load``, ``generate`` and ``steps``."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llmcli
from llmcli.errors import LlmcliError
from llmcli.files import json as json_files
from llmcli.generation.filters import FILTERS, Temperature, TopP
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.hub import default_model, find

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return llmcli.load()


def test_every_public_name_is_listed_and_documented() -> None:
    assert {name for name in dir(llmcli) if not name.startswith("__")} == set(llmcli.__all__) - {"__version__"}
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


def test_config_json_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read_file, names = json_files.read_file, []

    def recorded(path: Path, most: int) -> bytes:
        names.append(path.name)
        return read_file(path, most)

    monkeypatch.setattr(json_files, "read_file", recorded)
    llmcli.load()
    assert names.count("config.json") == 1


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
    with pytest.raises(LlmcliError, match=r"top-k must be a whole number, not 1\.5"):
        llmcli.generate(shipped, PROMPT, top_k=1.5)
    with pytest.raises(LlmcliError, match="max_new_tokens must be at least 0, not -1"):
        llmcli.generate(shipped, PROMPT, max_new_tokens=-1)
    with pytest.raises(LlmcliError, match="has room for at most"):
        next(iter(llmcli.generate(shipped, [1] * 5000)))
    with pytest.raises(LlmcliError):
        llmcli.load("no such model", offline=True)
    with pytest.raises(LlmcliError, match="there is no folder org/name"):
        llmcli.load(Path("org/name"))
    for name, value in {"dtype": "int8", "device": "gpu", "quantization": "int2"}.items():
        with pytest.raises(LlmcliError, match=f"{value!r} is not a") as caught:
            llmcli.load(**{name: value})  # type: ignore[arg-type]
        assert "known: " in caught.value.hint
    arguments = {"prompt": PROMPT, "temperature": "hot", "stop": [1], "seed": 1.5, "max_new_tokens": "all"}
    for name in list(arguments)[1:]:
        with pytest.raises(TypeError, match=name if name in ("temperature", "stop") else "integer"):
            llmcli.generate(shipped, **{"prompt": PROMPT, name: arguments[name]})  # type: ignore[arg-type]
    not_loaded: Any = default_model()
    with pytest.raises(TypeError, match=r"llmcli\.load\(\) returned, not str"):
        llmcli.generate(not_loaded, PROMPT)


@pytest.mark.parametrize("dtype", ["fp16", "FP16", "float16", torch.float16])
def test_short_names_of_dtypes(dtype: str | torch.dtype) -> None:
    assert llmcli.load(dtype=dtype).model.dtype == torch.float16


IDS: dict[str, tuple[Any, type[Exception], str]] = {
    "text": (PROMPT, TypeError, r"not 'Once upon a time'; loaded\.prompt_ids"),
    "bytes": (b"abc", TypeError, "expected token ids"),
    "floats": ([1.0], TypeError, "whole numbers"),
    "words": (["Once"], TypeError, "whole numbers"),
    "a number": (7, TypeError, "sequence of whole numbers"),
    "nothing": (None, TypeError, "sequence of whole numbers"),
    "a batch": (torch.ones(1, 2, dtype=torch.long), TypeError, "whole numbers"),
    "negative": ([1, -1], LlmcliError, "no token id -1"),
    "too large": ([10**6], LlmcliError, "only"),
    "huge": ([10**30], LlmcliError, "only"),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_that_the_model_cannot_read(shipped: LoadedModel, kind: str) -> None:
    ids, error, message = IDS[kind]
    sampler = Sampler([], 1)
    with pytest.raises(error, match=message):
        llmcli.steps(shipped.model, ids, sampler=sampler, max_new_tokens=1)
    if kind == "text":
        return
    for call in (llmcli.generate, llmcli.explain.score, llmcli.explain.lens):
        with pytest.raises(error, match=message):
            call(shipped, ids)


def test_texts_and_ids_of_the_wrong_type(shipped: LoadedModel) -> None:
    with pytest.raises(TypeError, match="expected a text, not 5"):
        llmcli.explain.tokenize(shipped, 5)  # type: ignore[arg-type]
    for wrong in ("text", ["a"], [1.5]):
        with pytest.raises(TypeError, match="expected a list of token ids"):
            shipped.tokenizer.decode(wrong)  # type: ignore[arg-type]


def test_ids_may_come_from_other_libraries(shipped: LoadedModel) -> None:
    ids = shipped.prompt_ids(PROMPT)
    for same in (torch.tensor(ids), torch.tensor(ids).numpy(), iter(ids)):
        step = next(llmcli.steps(shipped.model, same, sampler=Sampler([], 1), max_new_tokens=1))  # type: ignore[arg-type]
        assert step.position == len(ids)


def test_views_give_reasons_for_wrong_arguments(shipped: LoadedModel) -> None:
    explain: Any = llmcli.explain
    calls: dict[str, Any] = {
        "expected a model that": lambda: explain.score(shipped.model, PROMPT),
        "returned, not 'another'": lambda: explain.compare(shipped, "another", PROMPT),
        "expected words": lambda: explain.neighbours(shipped, 5),
        "expected a token's text or its id": lambda: explain.lens(shipped, PROMPT, token=1.5),
        "expected a text": lambda: explain.tokenize(shipped.tokenizer, [1, 2]),
        "expected a text, not 5": lambda: shipped.tokenizer.id_of(5),  # type: ignore[arg-type]
        "expected a tokenizer, or a model": lambda: explain.merges("another", PROMPT),
        "expected a position's number": lambda: explain.attend(shipped, PROMPT, position=None),
        "expected layers": lambda: explain.lens(shipped, PROMPT, layers=1.5),
        "expected a head": lambda: explain.why(shipped, PROMPT, head=[1]),
        "width must be a whole number, not 'a'": lambda: explain.branch(shipped, PROMPT, width="a"),
        "depth must": lambda: explain.branch(shipped, PROMPT, depth=None),
        "index must": lambda: explain.step(shipped, PROMPT, index=1.5),
        "top must": lambda: explain.step(shipped, PROMPT, top=None),
        "temperatures must": lambda: explain.step(shipped, PROMPT, temperatures=0.5),
        "top must be a whole number": lambda: explain.neighbours(shipped, "king", top=None),
        "tokens must": lambda: explain.inspect(shipped, tokens="many"),
        "takes a Sampler": lambda: llmcli.steps(shipped.model, [1], sampler=None, max_new_tokens=1),  # type: ignore[arg-type]
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(LlmcliError, match="index must be at least 0, not -3"):
        explain.step(shipped, PROMPT, index=-3)
    for view in (explain.attend, explain.lens, explain.why, explain.position, explain.neighbours, explain.tour):
        for other in (None, shipped.model):
            with pytest.raises(TypeError, match="expected a model that"):
                view(other, PROMPT)
    with pytest.raises(TypeError, match="expected a model that"):
        explain.inspect(shipped.model)
    for call in (lambda: explain.branch(shipped, PROMPT, width=0), lambda: explain.neighbours(shipped, "king", top=0)):
        with pytest.raises(LlmcliError, match="at least 1, not 0"):
            call()
    with pytest.raises(LlmcliError, match="not valid Unicode"):
        explain.neighbours(shipped, "\ud800")
    with pytest.raises(LlmcliError, match="there is no folder nosuch"):
        llmcli.load(adapter=Path("nosuch"))


def test_steps_takes_the_transformer(shipped: LoadedModel) -> None:
    loaded: Any = shipped
    with pytest.raises(TypeError, match=r"such as loaded\.model, not LoadedModel"):
        llmcli.steps(loaded, [1], sampler=Sampler([], 1), max_new_tokens=1)


def test_the_repr_of_a_model_is_one_short_line(shipped: LoadedModel) -> None:
    assert re.fullmatch(r"LoadedModel\('llama-tales-12m', llama with \d+ layers, \w+ on cpu\)", repr(shipped))
