"""``llmcli generate``: text on stdout and everything else on stderr, options, JSON, and invalid input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from llmcli.storage import checkpoint
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.tokenizer import load_tokenizer
from tests.commands.conftest import records

Run = Callable[..., Result]


def test_only_the_text_is_on_stdout(run: Run, model: Path) -> None:
    result = run("generate", "The old", "-m", model, "-n", 8, "--seed", 1)
    assert result.exit_code == 0
    assert result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert "seed 1" in result.stderr
    assert "8 tokens" in result.stderr
    assert "--max-tokens" in result.stderr
    assert "prompt 6 tokens" in result.stderr or "prompt" in result.stderr


def test_greedy_equals_transformers(run: Run, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = load_tokenizer(model)
    prompt = torch.tensor([tokenizer.encode("The shy fox")])
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=1)[
        0, prompt.shape[1] :
    ].tolist()
    result = run("generate", "The shy fox", "-m", model, "-n", 20, "--temperature", 0, "--dtype", "float32", "--json")
    assert [r["id"] for r in records(result) if r["type"] == "token"] == expected


def test_the_seed_decides_the_text(run: Run, model: Path) -> None:
    def text(seed: int) -> str:
        return run("generate", "The", "-m", model, "-n", 20, "--temperature", 2, "--seed", seed).stdout

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_random_seed_is_reported_and_repeats_the_text(run: Run, model: Path) -> None:
    first = run("generate", "The", "-m", model, "-n", 20, "--temperature", 2)
    seed = first.stderr.split("seed ")[1].split()[0]
    assert run("generate", "The", "-m", model, "-n", 20, "--temperature", 2, "--seed", seed).stdout == first.stdout


def test_json_is_complete_and_consistent(run: Run, model: Path) -> None:
    result = run("generate", "The old", "-m", model, "-n", 6, "--seed", 2, "--json", "--temperature", 1.5)
    start, *tokens, end = records(result)
    assert set(start) == {"type", "model", "dtype", "prompt_ids", "seed", "sampler"}
    assert start["sampler"] == [{"name": "temperature", "value": 1.5}, {"name": "top-p", "value": 0.95}]
    assert start["prompt_ids"] == load_tokenizer(model).encode("The old")
    keys = ["type", "index", "id", "text", "bytes", "logprob", "prob", "final_prob", "rank", "entropy", "u", "top"]
    assert all(list(token) == keys for token in tokens)
    assert [token["index"] for token in tokens] == list(range(end["tokens"]))
    assert all(len(token["top"]) == 5 for token in tokens)
    assert list(end) == ["type", "finish", "text", "tokens", "prefill_seconds", "decode_seconds"]
    assert end["finish"] in ("length", "stop_token")
    written = b"".join(bytes.fromhex(token["bytes"]) for token in tokens if token["id"] > 1)
    assert end["text"] == written.decode("utf-8", "replace")
    plain = run("generate", "The old", "-m", model, "-n", 6, "--seed", 2, "--temperature", 1.5)
    assert plain.stdout.removesuffix("\n") == end["text"].removesuffix("\n")


def test_json_snapshot_of_greedy_tokens(run: Run, model: Path) -> None:
    """The numbers in the JSON are those of the model, called directly."""
    ours = Checkpoint.read(model).load(device=torch.device("cpu"), dtype=torch.float32)
    ids = load_tokenizer(model).encode("The")
    args = ("generate", "The", "-m", model, "-n", 3, "--temperature", 0, "--dtype", "float32", "--json")
    _, *tokens, _ = records(run(*args))
    for token in tokens:
        with torch.inference_mode():
            probs = ours(torch.tensor([ids]))[0, -1].double().softmax(-1)
        assert token["prob"] == pytest.approx(float(probs[token["id"]]), rel=1e-4)
        assert token["logprob"] == pytest.approx(float(probs[token["id"]].log()), abs=1e-4)
        assert token["entropy"] == pytest.approx(float(-(probs * probs.log2()).sum()), abs=1e-3)
        assert (token["rank"], token["u"], token["final_prob"]) == (0, None, 1.0)
        assert token["top"][0]["id"] == token["id"]
        ids.append(token["id"])


def test_probs_table(run: Run, model: Path) -> None:
    result = run("generate", "--probs=3", "The", "-m", model, "-n", 4, "--seed", 1)
    lines = [line.split("\t") for line in result.stderr.splitlines()]
    assert ",".join(lines[0]) == "#,id,token,p,sign,rank,final p,top 1,p 1,top 2,p 2,top 3,p 3"
    assert [line[0] for line in lines[1:5]] == ["0", "1", "2", "3"]
    for line in lines[1:5]:
        assert float(line[8]) >= float(line[10]) >= float(line[12]) > 0
        assert float(line[3]) in [float(line[n]) for n in (8, 10, 12)] or int(line[5]) > 2
    assert run("generate", "--probs", "The", "-m", model, "-n", 4, "--seed", 1).stdout == result.stdout


def test_echo_and_stop(run: Run, model: Path) -> None:
    options = ("-m", model, "--temperature", 0, "-n", 30)
    text = run("generate", "The old fox", *options).stdout
    assert run("generate", "The old fox", *options, "--echo").stdout == "The old fox" + text
    stop = text[4:7]
    stopped = run("generate", "The old fox", *options, "--stop", stop)
    assert stopped.stdout.removesuffix("\n") == text[: text.index(stop)]
    assert "--stop string" in stopped.stderr
    assert records(run("generate", "The old fox", *options, "--stop", stop, "--json"))[-1]["finish"] == "stop_string"


def test_prompt_from_file_stdin_and_both(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The old\n", encoding="utf-8")
    options = ("-m", model, "-n", 1, "--json", "--seed", 1)
    tokenizer = load_tokenizer(model)

    def ids(*args: object, **more: str) -> object:
        return records(run("generate", *args, *options, **more))[0]["prompt_ids"]

    assert ids("--prompt-file", tmp_path / "p.txt") == tokenizer.encode("The old")
    assert ids(input="The old\n") == tokenizer.encode("The old")
    assert ids("-", input="The old") == tokenizer.encode("The old")
    assert ids("The", input="old") == tokenizer.encode("The\n\nold")
    assert ids("") == ids("", input="") == [0]
    assert ids("The", input="") == tokenizer.encode("The")


def test_special_tokens_in_the_prompt_are_text_by_default(run: Run, model: Path) -> None:
    prompt = "a<|end_of_text|>b"
    options = ("-m", model, "-n", 1, "--json")
    assert 1 not in records(run("generate", prompt, *options))[0]["prompt_ids"]
    assert records(run("generate", prompt, *options, "--parse-special"))[0]["prompt_ids"].count(1) == 1


def test_zero_tokens(run: Run, model: Path) -> None:
    result = run("generate", "The", "-m", model, "-n", 0)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "0 tokens" in result.stderr


def test_a_filter_that_samplers_does_not_list_is_reported(run: Run, model: Path) -> None:
    options = ("-m", model, "-n", 1, "--top-k", 4, "--logit-bias", "9=1")
    result = run("generate", "The", *options, "--samplers", "temperature")
    assert "--samplers does not list them: top-k, logit-bias\n" in result.stderr
    assert "leaves it out" not in run("generate", "The", *options).stderr


def test_samplers_order_and_subset(run: Run, model: Path) -> None:
    options = ("-m", model, "-n", 1, "--json", "--top-k", 5, "--min-p", 0.01)
    start = records(run("generate", "The", *options, "--samplers", "top-k,temperature"))[0]
    assert [f["name"] for f in start["sampler"]] == ["top-k", "temperature"]
    start = records(run("generate", "The", *options, "--samplers", ""))[0]
    assert start["sampler"] == []


def test_a_full_context_is_reported(run: Run, model: Path) -> None:
    for seed in range(20):
        result = run("generate", "The", "-m", model, "--temperature", 3, "--seed", seed)
        if "context is full" in result.stderr:
            return
    pytest.fail("no run reached the end of the context")


def test_environment_variables_set_options(run: Run, model: Path) -> None:
    env = {"LLMCLI_GENERATE_SEED": "77", "LLMCLI_GENERATE_MODEL": str(model), "LLMCLI_GENERATE_MAX_TOKENS": "2"}
    start, *tokens, _ = records(run("generate", "The", "--json", env=env))
    assert (start["seed"], len(tokens)) == (77, 2)


def test_environment_variables_are_named_after_options(run: Run, model: Path) -> None:
    environment = {"LLMCLI_GENERATE_JSON": "1", "LLMCLI_GENERATE_STOP": "the king\nfox"}
    found = records(run("generate", "The", "-m", model, "-n", 3, env=environment))
    assert found[0]["type"] == "start"
    text = run("generate", "The old", "-m", model, "-n", 30, "--seed", 1).stdout
    words = text.split()
    two = f"{words[3]} {words[4]}"
    stopped = run("generate", "The old", "-m", model, "-n", 30, "--seed", 1, env={"LLMCLI_GENERATE_STOP": two})
    assert stopped.stdout.rstrip() == text[: text.index(two)].rstrip()
    ids = run("tokenize", "The fox", env={"LLMCLI_TOKENIZE_MODEL": str(model), "LLMCLI_TOKENIZE_IDS": "1"})
    assert ids.stdout.split() == [str(i) for i in load_tokenizer(model).encode("The fox")]


def one_line(result: Result, code: int, *words: object) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--temperature", "warm"),
        ("--top-k", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--min-p", "nan"),
        ("--samplers", "top-k,nucleus"),
        ("--samplers", "top-k,top-k"),
        ("--max-tokens", "-1"),
        ("--stop", ""),
        ("--stop", "\udcff"),
        ("--seed", "-1"),
        ("--probs=0",),
        ("--dtype", "int3"),
        ("--device", "abacus"),
        ("--threads", "0"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_bad_options_are_found_before_a_model_is_loaded(run: Run, args: tuple[str, ...]) -> None:
    one_line(run("generate", "x", "-m", "no such model", *args), 2, "")
    assert "no such model" not in run("generate", "x", "-m", "no such model", *args).stderr


def test_missing_models(run: Run, model: Path, tmp_path: Path) -> None:
    one_line(run("generate", "x", "-m", "nowhere"), 1, "nowhere")
    one_line(run("generate", "x", "-m", model / "config.json"), 1, "neither a model folder nor a GGUF file")
    one_line(run("generate", "x", "-m", tmp_path), 1, tmp_path)


def test_damaged_models(run: Run, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"

    def with_damage(name: str, damage: bytes) -> Result:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(model, broken)
        (broken / name).write_bytes(damage)
        return run("generate", "x", "-m", broken)

    whole = (model / "model.safetensors").read_bytes()
    one_line(with_damage("config.json", b"{"), 1, "config.json", "line 1")
    one_line(with_damage("config.json", b'{"model_type": "mamba"}'), 1, "mamba", "supported: llama, mistral")
    one_line(with_damage("model.safetensors", whole[:-10]), 1, "model.safetensors")
    one_line(with_damage("model.safetensors", b""), 1, "model.safetensors")
    one_line(with_damage("tokenizer.json", b"{}"), 1, "tokenizer.json")
    config = json.loads((model / "config.json").read_text())
    one_line(with_damage("config.json", json.dumps(config | {"hidden_size": 16}).encode()), 1, "shape")


def test_logits_that_overflow_are_an_error(run: Run, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "large")
    damaged = Checkpoint.read(model).load(device=torch.device("cpu"))
    damaged.norm.weight.fill_(3e38)
    described = json.loads((model / "config.json").read_text())
    checkpoint.save(damaged, tmp_path / "large", described, dtype=torch.bfloat16)
    result = run("generate", "x", "-m", tmp_path / "large")
    assert result.exit_code == 1
    assert "contain NaN or infinity" in result.stderr


def test_a_prompt_beyond_the_context(run: Run, model: Path) -> None:
    one_line(run("generate", "fox " * 200, "-m", model), 2, "64", "context")


def test_bad_prompts(run: Run, model: Path, tmp_path: Path) -> None:
    one_line(run("generate", "-m", model, input=b"\xff\xfe\xfa"), 2, "stdin", "byte 0")
    one_line(run("generate", "-m", model, "--prompt-file", tmp_path / "none"), 2, "none")
    one_line(run("generate", "-m", model, "--prompt-file", tmp_path), 2, tmp_path)
    one_line(run("generate", "x", "-m", model, "--prompt-file", tmp_path), 2, "cannot be combined")
    one_line(run("generate", "a\udcffb", "-m", model), 2, "Unicode")
    (tmp_path / "empty").write_text("\n")
    one_line(run("generate", "-m", model, "--prompt-file", tmp_path / "empty"), 2, "empty is empty", '""')
    for command in ("generate", "score", "lens", "tokenize"):  # as after `cat nosuchfile |`
        one_line(run(command, "-m", model, input=""), 2, "stdin is empty", '""')
    one_line(run("generate", "-", "-m", model, input="\n"), 2, "stdin is empty")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device(run: Run, model: Path) -> None:
    one_line(run("generate", "x", "-m", model, "--device", "cuda"), 2, "cuda", "cpu")


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "unable to mmap 9 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    ],
)
def test_out_of_memory(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("llmcli.generation.steps.last_logits", exhausted)
    result = run("generate", "x", "-m", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "out of memory" in result.stderr


def test_verbose_shows_the_traceback(run: Run) -> None:
    result = run("generate", "x", "-m", "nowhere", "--verbose")
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("llmcli: there is no model nowhere")


def test_interrupted_keeps_the_text(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcli.generation import steps

    real, calls = steps.last_logits, [0]

    def third_is_interrupted(*args: object, **more: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*args, **more)  # type: ignore[arg-type]

    whole = run("generate", "The", "-m", model, "-n", 2, "--seed", 1).stdout
    monkeypatch.setattr("llmcli.generation.steps.last_logits", third_is_interrupted)
    result = run("generate", "The", "-m", model, "--seed", 1)
    assert result.exit_code == 130
    assert result.stdout == whole
    assert "interrupted" in result.stderr
    calls[0] = 0
    result = run("generate", "The", "-m", model, "--seed", 1, "--json")
    assert result.exit_code == 130
    assert records(result)[-1]["finish"] == "interrupted"
    assert records(result)[-1]["tokens"] == 2


def test_a_tokenizer_of_another_model_is_reported(run: Run, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "mixed")
    raw = json.loads((model / "tokenizer.json").read_text())
    raw["model"]["vocab"] = {token: id + (id > 250) * 1000 for token, id in raw["model"]["vocab"].items()}
    (tmp_path / "mixed" / "tokenizer.json").write_text(json.dumps(raw))
    result = run("generate", "The old fox", "-m", tmp_path / "mixed")
    warning, error = result.stderr.splitlines()
    assert "does it belong to another model?" in warning
    assert result.exit_code == 1
    assert "but the model has only" in error


def test_angles_that_depend_on_the_planned_length_are_reported(run: Run, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "dynamic")
    raw = json.loads((model / "config.json").read_text())
    raw |= {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    (tmp_path / "dynamic" / "config.json").write_text(json.dumps(raw))
    options = ("generate", "The", "-m", tmp_path / "dynamic", "--seed", 1)
    assert "angles are computed" not in run(*options, "-n", 4).stderr
    result = run(*options, "-n", 40)
    prompt = int(result.stderr.split("prompt ")[-1].split()[0])
    assert f"computed for {prompt + 40} tokens" in result.stderr
    assert f"computed for {64} tokens" in run(*options, "-n", 400).stderr


def test_speculative_decoding_changes_nothing_and_is_counted(run: Run, model: Path, tmp_path: Path) -> None:
    options = (
        "generate",
        "The old fox. The old fox. The",
        "-m",
        model,
        "-n",
        40,
        "--temperature",
        0,
        "--dtype",
        "float32",
    )
    plain = run(*options)
    for speculative in (("--prompt-lookup",), ("--draft-model", model)):
        result = run(*options, *speculative, "--verbose")
        assert result.stdout == plain.stdout
        assert "tokens proposed, " in result.stderr
        assert " accepted" in result.stderr
        end = records(run(*options, *speculative, "--json"))[-1]
        assert end["text"] == records(run(*options, "--json"))[-1]["text"]
        assert 0 < end["kept"] <= end["guessed"]
    assert "kept" not in records(run(*options, "--json"))[-1]
    one_line(run(*options, "--prompt-lookup", "--draft-model", model), 2, "cannot be combined")
    other = shutil.copytree(model, tmp_path / "other")
    raw = json.loads((other / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(raw))
    assert "the tokenizer of other differs" in run(*options, "--draft-model", other).stderr
