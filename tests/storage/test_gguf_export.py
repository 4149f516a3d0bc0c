"""Models as GGUF files: against the package ``gguf``, and against llama.cpp where it is installed."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.files.atomic import replacing
from llmcli.generation.gguf_texts import gguf_metadata
from llmcli.model.families import FAMILIES, family_of
from llmcli.model.families.gguf import architecture_for, described
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.ggml import restore
from llmcli.storage.gguf.export import GgufExport, GgufType
from llmcli.storage.gguf.quantizers import encode
from llmcli.storage.gguf.weights import contents_of
from llmcli.storage.quantized_checkpoint import save_quantized
from llmcli.text.gguf.export import describe_tokenizer
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.gguf_file import write_gguf
from tests.packers import CASES
from tests.storage.test_gguf_weights import CPU, MODELS, WRITTEN, logits_of, write_model
from tests.storage.test_packed import make
from tests.text.test_gguf_tokenizer import SENTENCES

# Sizes that llama.cpp accepts.
ACCEPTED: dict[str, dict[str, Any]] = {
    "phi3": {"sliding_window": None},
    "phi3-longrope": {"hidden_size": 128},
    "olmoe": {"num_key_value_heads": 4},
    "gemma4_text": {"vocab_size_per_layer_input": 330},
}
ENDS = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}


def export(folder: Path, file: Path, kind: GgufType, metadata: Mapping[str, Any] = ENDS) -> GgufExport:
    """Write the model to ``file``."""
    planned = GgufExport(Checkpoint.read(folder), kind)
    with replacing(file) as out:
        planned.write(out, metadata)
    return planned


def contents(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a file, as ``gguf`` reads them."""
    reader = GGUFReader(file)
    tensors = {
        tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()) for tensor in reader.tensors
    }
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("case", MODELS)
def test_a_file_is_that_of_the_converter(case: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", case, **ACCEPTED.get(case, {}))
    write_gguf(folder, tmp_path / "theirs.gguf")
    planned = export(folder, tmp_path / "ours.gguf", "F32")
    (ours, tensors), (theirs, expected) = contents(tmp_path / "ours.gguf"), contents(tmp_path / "theirs.gguf")
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        exact = name != "rope_freqs.weight"
        torch.testing.assert_close(tensors[name], tensor, rtol=0 if exact else 1e-6, atol=0, msg=name)
    others = ["GGUF.kv_count"]
    others += ["llama.rope.scaling.original_context_length"] if "llama3" in case else []  # not of the real converter
    assert {key: ours.get(key) for key in theirs if key not in others} == {
        key: value for key, value in theirs.items() if key not in others
    }
    assert len(planned.changes) == (case == "gpt_oss-yarn")
    torch.testing.assert_close(logits_of(tmp_path / "ours.gguf"), logits_of(folder), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", WRITTEN)
def test_a_written_file_has_the_logits_of_its_model(case: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", case)
    assert export(folder, tmp_path / "model.gguf", "F32").changes == []
    expected = logits_of(folder)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits_of(tmp_path / "model.gguf"), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["BF16", "F16", "Q8_0", "Q4_0", "Q4_K"])
def test_weights_are_those_that_the_type_restores(kind: GgufType, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "mixtral", hidden_size=256, num_hidden_layers=1)
    planned = export(folder, tmp_path / "model.gguf", kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    heavy = {"Q4_0": "Q8_0", "Q4_K": "Q8_0"}.get(kind, kind)
    assert (types.pop("token_embd.weight"), types.pop("output.weight")) == (heavy, heavy)
    floats = {name: types.pop(name) for name in sorted(types) if name.endswith(("norm.weight", "gate_inp.weight"))}
    assert set(floats.values()) == {"F32"}
    others = {"attn_v": "Q6_K", "attn_output": "Q5_1", "ffn_down_exps": "Q8_0"}  # the last two have short rows
    assert types == {name: others.get(name.split(".")[2], kind) if kind == "Q4_K" else kind for name in types}
    counts = {"Q5_1": 1, "Q8_0": 4} if kind == "Q4_K" else {}
    because = "because rows are not multiples of 256"
    assert planned.changes == [f"stored as {type}, {because}: {n} of 18 matrices" for type, n in counts.items()]
    # Read again and written as float32, the weights are exactly those that ``gguf`` restores.
    export(tmp_path / "model.gguf", tmp_path / "again.gguf", "F32")
    (ours, again), (_, restored) = contents(tmp_path / "again.gguf"), contents(tmp_path / "model.gguf")
    assert again.keys() == restored.keys()
    assert all(torch.equal(again[name], restored[name]) for name in restored)
    assert ours["tokenizer.ggml.eos_token_id"] == 2
    export(folder, tmp_path / "exact.gguf", "F32")
    _, exact = contents(tmp_path / "exact.gguf")
    limits = {"BF16": 0.002, "F16": 0.0003, "Q8_0": 0.01}
    for name, tensor in exact.items():
        assert (restored[name] - tensor).norm() <= limits.get(kind, 0.1) * tensor.norm(), name


def test_some_layers_have_six_bits_in_a_file_of_four(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama", hidden_size=256, intermediate_size=256, num_hidden_layers=9)
    tensors = GgufExport(Checkpoint.read(folder), "Q4_K").tensors.values()
    layers = [int(tensor.name.split(".")[1]) for tensor in tensors if tensor.type == "Q6_K"]
    assert layers == [layer for layer in (0, 3, 6, 7, 8) for _ in range(2)]  # as llama.cpp's use_more_bits
    assert {tensor.name.split(".")[2] for tensor in tensors if tensor.type == "Q6_K"} == {"attn_v", "ffn_down"}


def test_a_file_of_the_same_type_keeps_its_blocks(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    write_gguf(folder, tmp_path / "theirs.gguf", lambda name, tensor: "Q4_0" if tensor.ndim == 2 else "F32")
    export(tmp_path / "theirs.gguf", tmp_path / "ours.gguf", "Q4_0")
    (metadata, ours), (expected, theirs) = contents(tmp_path / "ours.gguf"), contents(tmp_path / "theirs.gguf")
    for name, tensor in theirs.items():
        heavy = name in ("token_embd.weight", "output.weight")  # which ``gguf`` stored with 4 bits, and we with 8
        torch.testing.assert_close(ours[name], tensor, rtol=0.01 if heavy else 0, atol=0.01 if heavy else 0)
    assert {key: metadata[key] for key in expected if not key.startswith("GGUF")} == {
        key: value for key, value in expected.items() if not key.startswith("GGUF")
    }


@pytest.mark.parametrize("case", ["qwen3_5_text", "granitemoehybrid-experts", "deepseek_v3"])
def test_blocks_are_read_in_order(case: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", case)
    export(folder, tmp_path / "packed.gguf", "Q8_0")
    export(tmp_path / "packed.gguf", tmp_path / "restored.gguf", "F32")
    packed, restored, exact = (logits_of(tmp_path / name) for name in ("packed.gguf", "restored.gguf", "model"))
    torch.testing.assert_close(packed, restored, atol=1e-4, rtol=0)
    assert 0 < (packed - exact).abs().max() < 0.2


@pytest.mark.parametrize(("quantization", "kind"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_weights_of_a_quantized_folder_are_kept(quantization: Any, kind: GgufType, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    raw = json.loads((folder / "config.json").read_text())
    save_quantized(Checkpoint.read(folder).load(device=CPU), quantization, tmp_path / "quantized", raw)
    export(tmp_path / "quantized", tmp_path / "ours.gguf", kind)
    assert torch.equal(logits_of(tmp_path / "ours.gguf"), logits_of(tmp_path / "quantized"))
    export(tmp_path / "quantized", tmp_path / "exact.gguf", "F32")
    torch.testing.assert_close(logits_of(tmp_path / "exact.gguf"), logits_of(tmp_path / "quantized"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["gptq-4", "nf4", "fp8-blocks"])
def test_packed_checkpoints_are_unpacked(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", CASES[name]).path
    export(folder, tmp_path / "ours.gguf", "F32")
    theirs = Checkpoint.read(folder).load(device=CPU, dtype=torch.float32).state_dict()
    ours = Checkpoint.read(tmp_path / "ours.gguf").load(device=CPU).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    folder, adapter = write_model(tmp_path / "model", "llama", tie_word_embeddings=True), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    generator = torch.Generator().manual_seed(3)
    names = {"model.layers.0.self_attn.q_proj": (128, 64), "model.embed_tokens": (67, 64)}
    lora = {}
    for name, (rows, columns) in names.items():
        embedding, a, b = ("embedding_", "", "") if "embed" in name else ("", ".weight", ".weight")
        sizes = {"A": (2, rows), "B": (columns, 2)} if embedding else {"A": (2, columns), "B": (rows, 2)}
        for role, end in (("A", a), ("B", b)):
            key = f"base_model.model.{name}.lora_{embedding}{role}{end}"
            lora[key] = torch.randn(sizes[role], generator=generator)
    save_file(lora, adapter / "adapter_model.safetensors")
    planned = GgufExport(Checkpoint.read(folder), "F32", adapter)
    with replacing(tmp_path / "merged.gguf") as file:
        planned.write(file, ENDS)
    merged = Checkpoint.read(folder).load(device=CPU, dtype=torch.float32, adapter=adapter)
    ours = Checkpoint.read(tmp_path / "merged.gguf").load(device=CPU)
    for (name, expected), (same, found) in zip(merged.named_parameters(), ours.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(found, expected), name
    assert not ours.config.tie_word_embeddings


# --- what the format cannot express ---


@pytest.mark.parametrize(
    ("case", "changed", "problem"),
    [
        ("llama", {"hidden_act": "gelu"}, "architecture llama cannot express this model's activation"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "cannot express this model's rope"),
        ("qwen3", {"attention_bias": True}, "architecture qwen3 cannot express this model's qkv_bias, out_bias"),
        ("gemma2", {"query_pre_attn_scalar": 4}, "architecture gemma2 cannot express this model's attention_scale"),
        ("gemma2", {"tie_word_embeddings": False}, "cannot express this model's tie_word_embeddings"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "cannot express this model's sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "cannot express this model's layers_without_rope"),
        ("olmoe", {"norm_topk_prob": True, "num_key_value_heads": 4}, "cannot express this model's moe"),
        ("phi3", {"hidden_size": 128}, "architecture phi3 cannot express this model's head_dim"),
        ("olmoe", {}, "architecture olmoe cannot express this model's num_key_value_heads"),
        ("smollm3", {"attention_bias": True, "mlp_bias": True}, "cannot express this model's attention_bias, mlp_bias"),
        ("gpt_neox", {"tie_word_embeddings": True}, "cannot express this model's tie_word_embeddings"),
        ("cohere", {"use_qk_norm": True}, "architecture command-r cannot express this model's qk_norm"),
        ("lfm2", {"conv_bias": True}, "architecture lfm2 cannot express this model's mixer"),
        ("lfm2_moe", {"routed_scaling_factor": 2.0}, "cannot express this model's moe"),
        ("qwen3_next", {"linear_value_head_dim": 8}, "cannot express this model's linear_value_head_dim"),
        ("granitemoehybrid", {"mamba_expand": 4}, "cannot express this model's mixer"),
        ("falcon_h1", {"mamba_conv_bias": False}, "cannot express this model's mamba_conv_bias"),
        ("falcon_h1", {"tie_word_embeddings": True}, "cannot express this model's tie_word_embeddings"),
        ("deepseek_v3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "this model's rope_scaling"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "cannot express this model's num_kv_shared_layers"),
        ("falcon", {"bias": True}, "architecture falcon cannot express this model's bias"),
        ("falcon", {"parallel_attn": False}, "cannot express this model's parallel_residual"),
        ("llama4_text", {"no_rope_layers": [1, 0, 1, 0]}, "cannot express this model's layers_without_rope"),
        ("exaone4", {"sliding_window": 8}, "architecture exaone4 cannot express this model's sliding_window"),
        ("deepseek_v3", {"num_hidden_layers": 27}, "architecture deepseek2 cannot express this model's q_lora_rank"),
        ("granite", {"attention_bias": True}, None),
    ],
)
def test_models_that_llama_cpp_would_compute_differently(
    case: str, changed: dict[str, Any], problem: str | None, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.read(write_model(tmp_path, case, **changed))
    if problem is None:
        GgufExport(checkpoint, "F32")
        return
    with pytest.raises(LlmcliError) as raised:
        GgufExport(checkpoint, "F32")
    assert problem in raised.value.message


# Families without an architecture of llama.cpp, or whose architecture is not written yet.
WITHOUT_ARCHITECTURE = {
    "nanochat",
    "helium",
    "gpt_neo",
    "opt",
    "gptj",
    "mistral3",
    "llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
}


def test_every_other_family_has_an_architecture(tmp_path: Path) -> None:
    config = Checkpoint.read(write_model(tmp_path, "llama")).config
    for family in FAMILIES.keys() - WITHOUT_ARCHITECTURE:
        architecture_for(replace(config, model_type=family))
    for family in WITHOUT_ARCHITECTURE:
        with pytest.raises(LlmcliError, match=f"the family {family} cannot be written as GGUF"):
            architecture_for(replace(config, model_type=family))
    with pytest.raises(LlmcliError, match=r"the family other cannot be written as GGUF \(supported: llama, qwen2"):
        architecture_for(replace(config, model_type="other"))


@pytest.mark.parametrize("case", ["deepseek_v3", "gemma4_text", "falcon_h1", "nemotron_h-experts", "apertus"])
def test_metadata_that_cannot_be_right_is_one_line(case: str, tmp_path: Path) -> None:
    export(write_model(tmp_path / "model", case), tmp_path / "model.gguf", "F32")
    read, messages = contents_of(tmp_path / "model.gguf"), []
    for key in read.metadata:
        for value in ("x", "", -1, 0, 2**40, float("nan"), [], [0], ["a"], [1] * 9):
            changed = replace(read, metadata={**read.metadata, key: value})
            try:
                raw = described(changed)
                family_of(raw).parse(raw)
            except LlmcliError as error:
                messages.append(str(error))
    assert len(messages) > 50
    assert not [message for message in messages if "\n" in message]


def test_constants_of_a_learned_activation_are_checked(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model", "apertus"), tmp_path / "model.gguf", "BF16")
    export(tmp_path / "model.gguf", tmp_path / "again.gguf", "BF16")
    assert torch.equal(logits_of(tmp_path / "again.gguf"), logits_of(tmp_path / "model.gguf"))
    read = contents_of(tmp_path / "again.gguf")
    with pytest.raises(LlmcliError, match=r"xielu\.beta is 0\.6"):
        described(replace(read, metadata={**read.metadata, "xielu.beta": [0.5, 0.6]}))


def test_without_windows_the_context_is_one_window(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", model_type="mistral", sliding_window=40)
    planned = export(folder, tmp_path / "model.gguf", "F32")
    assert planned.changes == ["the context is limited to the attention window of 40 tokens"]
    assert Checkpoint.read(tmp_path / "model.gguf").config.max_position_embeddings == 40
    assert torch.equal(logits_of(tmp_path / "model.gguf", 40), logits_of(folder, 40))
    assert export(write_model(tmp_path / "b", "llama", model_type="mistral"), tmp_path / "b.gguf", "F32").changes == []


def test_weights_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    for value, kind, problem in (
        (1e6, "F16", "values of blk.1.ffn_down.weight are too large for F16"),
        (float("nan"), "Q8_0", "tensor model.layers.1.mlp.down_proj.weight contains NaN or infinity"),
    ):
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(LlmcliError, match=problem):
            export(folder, tmp_path / "model.gguf", kind)
        assert not [path for path in tmp_path.iterdir() if path.name != "model"]


# --- quantizing ---


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_1", "Q6_K"])
def test_blocks_have_a_smaller_error_than_those_of_llama_cpp(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 512, generator=generator) * (1 + 5 * torch.rand(64, 512, generator=generator) ** 8)
    blocks = encode(rows, kind)
    restored = restore(blocks.flatten(), kind).view(rows.shape)
    assert torch.equal(torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind])), restored)
    error = float((restored - rows).norm() / rows.norm())
    assert error < {"Q4_K": 0.1, "Q5_1": 0.05, "Q6_K": 0.03}[kind]
    assert error <= 1.001 * _error_of_llama_cpp(rows, kind)


def _error_of_llama_cpp(rows: Tensor, kind: str) -> float:
    """The relative error of llama.cpp's own blocks."""
    llama_cpp = pytest.importorskip("llama_cpp")
    type = GGMLQuantizationType[kind]
    paths = sorted((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*"))
    if not paths:
        pytest.skip("this llama_cpp has no library of its own")
    function = ctypes.CDLL(str(paths[0])).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    blocks = torch.zeros_like(encode(rows, kind))
    function(type.value, rows.data_ptr(), blocks.data_ptr(), 0, *rows.shape, None)
    return float((torch.from_numpy(dequantize(blocks.numpy(), type)) - rows).norm() / rows.norm())


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_1"])
@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(2, 256),
        torch.full((1, 256), 3.0),
        torch.full((1, 256), -3.0),
        torch.arange(16.0).repeat(1, 16) * 0.5,
        -torch.arange(16.0).repeat(1, 16),
    ],
    ids=["zero", "positive", "negative", "steps", "negative-steps"],
)
def test_weights_that_the_codes_can_express_stay(rows: Tensor, kind: str) -> None:
    restored = restore(encode(rows, kind).flatten(), kind).view(rows.shape)
    torch.testing.assert_close(restored, rows, rtol=1e-3, atol=0.002 * float(rows.abs().max()))


# --- llama.cpp ---


def greedy(file: Path, ids: list[int], count: int) -> list[int]:
    """The tokens that llama.cpp chooses."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, verbose=False)
    return [id for id, _ in zip(model.generate(ids, top_k=1, temp=0.0), range(count), strict=False)]


def ours(path: Path, ids: list[int], count: int) -> list[int]:
    """The tokens that llmcli chooses, in float32."""
    model = Checkpoint.read(path).load(device=CPU, dtype=torch.float32)
    ids = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


@cache
def tokenizer_metadata() -> Mapping[str, Any]:
    tokenizer = Tokenizer(train_tokenizer(SENTENCES, 330), "tiny")
    return describe_tokenizer(tokenizer, 330, {"bos": 0, "eos": 1}, [1]).metadata


# Other cases show the same, and llama.cpp rounds the ends of YaRN's ramp.
NOT_COMPARED = {"llama", "llama-linear", "gpt2-untied", "gpt_neox-serial", "gpt_oss-yarn"}


@pytest.mark.parametrize("case", sorted(MODELS.keys() - NOT_COMPARED | WRITTEN.keys()))
def test_llama_cpp_writes_the_same_text(case: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    folder = write_model(tmp_path / "model", case, vocab_size=330, **ACCEPTED.get(case, {}))
    export(folder, tmp_path / "model.gguf", "F32", tokenizer_metadata())
    ids = [5, 80, 11, 200, 7] * 4  # beyond LongRoPE's original context: llama.cpp always uses the long factors
    assert greedy(tmp_path / "model.gguf", ids, 10) == ours(folder, ids, 10)


def test_of_gpt_oss_llama_cpp_computes_only_the_ends_of_yarns_ramp_differently(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    case = "gpt_oss-yarn"
    folder = write_model(tmp_path / "model", case, vocab_size=330)
    planned = export(folder, tmp_path / "model.gguf", "F32", tokenizer_metadata())
    assert planned.changes == ["llama.cpp rounds the ends of YaRN's ramp, so some pairs rotate at another speed"]
    rounded = {**MODELS[case]["rope_scaling"], "truncate": True}
    other = write_model(tmp_path / "rounded", case, vocab_size=330, rope_scaling=rounded)
    ids = [5, 80, 11, 200, 7] * 12
    theirs = greedy(tmp_path / "model.gguf", ids, 10)
    assert theirs == ours(other, ids, 10)
    assert theirs != ours(folder, ids, 10)


@pytest.mark.skipif("LLMCLI_REAL_MODELS" not in os.environ, reason="needs LLMCLI_REAL_MODELS")
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_llama_cpp_writes_the_same_text_of_a_real_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    checkpoint = Checkpoint.read(Path(os.environ["LLMCLI_REAL_MODELS"]) / name)
    described = gguf_metadata(checkpoint, checkpoint.config.vocab_size, name)
    export(checkpoint.folder, tmp_path / "model.gguf", "BF16", described.metadata)
    ids = load_tokenizer(checkpoint.folder).encode("The old lighthouse keeper walked down to the shore and")
    expected = ours(checkpoint.folder, ids, 32)
    assert greedy(tmp_path / "model.gguf", ids, 32) == expected
    assert ours(tmp_path / "model.gguf", ids, 32) == expected
