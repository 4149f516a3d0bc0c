"""Compare llmcli with llama.cpp and transformers on the same random Llama weights, as a table of ratios.

    pip install llama-cpp-python gguf transformers    # the first with CMAKE_ARGS=-DGGML_NATIVE=ON
    python tests/bench/peers.py --threads 2

Each engine runs in a separate process. The engines take turns in each round, so that other load on the machine affects
all of them. Ratios are computed within a round; the table gives the median and the range over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from llmcli.engine.random_weights import random_model
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.families.llama import LLAMA, describe

WARM_UP_TOKENS = 16  # tokens generated before the clock starts
SHAPES: dict[str, dict[str, Any]] = {
    "15M": {
        "vocab_size": 32000, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 48,
    },
    "135M": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    },
    "1.2B": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    },
}  # fmt: skip
CONTEXT = 8192


class Engine(Protocol):
    """An inference engine with a loaded model."""

    def run(self, prompt: list[int], output: int) -> tuple[float, float, int]:
        """Generate ``output`` tokens after ``prompt``.

        Returns the seconds of prefill, the seconds per token after the first ``WARM_UP_TOKENS``, and the id of the
        first generated token.
        """


class Llmcli:
    def __init__(self, folder: Path, kind: str, threads: int) -> None:
        from llmcli.generation.filters import Temperature
        from llmcli.generation.sampling import Sampler
        from llmcli.storage.quantize import quantize
        from tests.tiny import load

        torch.set_num_threads(threads)
        self.sampler = Sampler([Temperature(0.0)], seed=0)
        if kind.endswith(".gguf"):
            self.model = load(folder / kind, device=torch.device("cpu"), dtype=torch.bfloat16)
            return
        quantized = kind in ("int8", "int4")
        dtype = torch.bfloat16 if quantized else getattr(torch, kind)
        self.model = load(folder / "hf", device=torch.device("cpu"), dtype=dtype)
        if quantized:
            quantize(self.model, kind)

    def run(self, prompt: list[int], output: int) -> tuple[float, float, int]:
        from llmcli.generation.steps import steps

        times, tokens = [time.perf_counter()], []
        for step in steps(self.model, prompt, sampler=self.sampler, max_new_tokens=output):
            times.append(time.perf_counter())
            tokens.append(step.token)
        return times[1] - times[0], _seconds_per_token(times[1:]), tokens[0]


class Transformers:
    def __init__(self, folder: Path, kind: str, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        dtype = getattr(torch, kind)
        self.model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=dtype).eval()

    def run(self, prompt: list[int], output: int) -> tuple[float, float, int]:
        times = [time.perf_counter()]

        class Clock:
            def put(self, value: torch.Tensor) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), streamer=Clock(), max_new_tokens=output,
                min_new_tokens=output, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        times = times[1:]  # the streamer gets the prompt first
        return times[1] - times[0], _seconds_per_token(times[1:]), int(out[0, len(prompt)])


class LlamaCpp:
    def __init__(self, folder: Path, kind: str, threads: int, *, all_logits: bool = False) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self.silent = silent  # must outlive the library
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(
            str(folder / kind).removesuffix(".gguf").encode() + b".gguf", params
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

        self.all_logits = all_logits

    def run(self, prompt: list[int], output: int) -> tuple[float, float, int]:
        self.clear()
        times = [time.perf_counter()]
        for start in range(0, len(prompt), 512):
            self.feed(prompt[start : start + 512])
        tokens = [int(self.logits(-1).argmax())]
        times.append(time.perf_counter())
        for _ in range(output - 1):
            self.feed(tokens[-1:])
            tokens.append(int(self.logits(-1).argmax()))
            times.append(time.perf_counter())
        return times[1] - times[0], _seconds_per_token(times[1:]), tokens[0]

    def clear(self) -> None:
        """Empty the KV cache."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.length = 0

    def feed(self, ids: list[int]) -> None:
        """Feed tokens, and compute the logits after the last one or, with ``all_logits``, after each."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for number, token in enumerate(ids):
            batch.token[number], batch.pos[number] = token, self.length + number
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, 0
            batch.logits[number] = self.all_logits or number == len(ids) - 1
        assert self.api.llama_decode(self.context, batch) == 0
        self.api.llama_batch_free(batch)
        self.length += len(ids)

    def logits(self, number: int) -> Any:
        """The logits after the token ``number`` of the last ones fed, float32 [V]; they stay until the next are fed."""
        import numpy

        return numpy.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, number), shape=(self.vocab,))


def _seconds_per_token(times: list[float]) -> float:
    first = min(WARM_UP_TOKENS, len(times) - 2)
    return (times[-1] - times[first]) / (len(times) - 1 - first)


ENGINES = {"llmcli": Llmcli, "transformers": Transformers, "llama.cpp": LlamaCpp}


def serve(arguments: argparse.Namespace) -> None:
    """Run in the child process: load the model, then answer each line {"prompt", "output"} with the timings."""
    engine: Engine = ENGINES[arguments.engine](arguments.folder, arguments.kind, arguments.threads)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(engine.run(request["prompt"], request["output"])), flush=True)


def write_models(folder: Path, shape: dict[str, Any], kinds: list[str]) -> None:
    """Write the random model as a checkpoint, and as GGUF in each of ``kinds``."""
    from llmcli.storage.checkpoint import save

    config = ModelConfig(
        "llama", **shape, max_position_embeddings=CONTEXT, tie_word_embeddings=False, norm_eps=1e-5, rope=RopeConfig()
    )
    model = random_model(config, device=torch.device("cpu"), dtype=torch.bfloat16)
    save(model, folder / "hf", describe(config), dtype=torch.bfloat16)
    for kind in kinds:
        write_gguf(folder / f"{kind}.gguf", config, folder / "hf" / "model.safetensors", kind)


def write_gguf(path: Path, config: ModelConfig, weights: Path, kind: str) -> None:
    """Write the checkpoint in llama.cpp's format, with matrices as ``kind`` and norms in float32."""
    import gguf
    from safetensors.torch import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    quantization = gguf.GGMLQuantizationType[kind]
    tensors = load_file(weights)
    assert tensors.keys() == {source.name for rule in LLAMA.rules(config) for source in rule.sources}
    for name, tensor in tensors.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates adjacent pairs, transformers the two halves
                tensor = tensor.view(count, 2, config.head_dim // 2, -1).transpose(1, 2).reshape(tensor.shape)
        values = tensor.float().numpy()
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(gguf_name, values)
        else:
            writer.add_tensor(gguf_name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Child:
    """An engine in a separate process."""

    def __init__(self, engine: str, kind: str, folder: Path, threads: int) -> None:
        self.name = f"{engine} {kind}"
        command = [sys.executable, "-m", "tests.bench.peers", "--engine", engine, "--kind", kind]
        command += ["--folder", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.name} did not start")

    def run(self, prompt: list[int], output: int) -> tuple[float, float, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"prompt": prompt, "output": output}), file=self.process.stdin, flush=True)
        prefill, decode, first = json.loads(self.process.stdout.readline())
        return prefill, decode, first

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(children: list[Child], prompt: list[int], output: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return prefill and decode in tokens per second by engine and round; an extra first round is a warm-up."""
    speeds: dict[str, list[tuple[float, float]]] = {child.name: [] for child in children}
    for number in range(rounds + 1):
        firsts = {}
        for child in children:
            prefill, decode, firsts[child.name] = child.run(prompt, output)
            if number:
                speeds[child.name].append((len(prompt) / prefill, 1 / decode))
    print(f"first tokens: {firsts}", file=sys.stderr)
    return speeds


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Return the median and the range of the ratios within a round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def print_row(cells: list[str], ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> None:
    """Print a table's row: ``cells``, then for prefill and for decode the median of both engines and their ratio."""
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        cells += [f"{statistics.median(mine):.1f}", f"{statistics.median(other):.1f}", ratio(list(mine), list(other))]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)  # the child process's options
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="model sizes, separated by commas")
    parser.add_argument(
        "--pairs",
        default="bfloat16/BF16,int8/Q8_0,int4/Q4_0,bfloat16/bfloat16,float32/float32",
        help="llmcli's weights / a GGUF type (llama.cpp) or a torch dtype (transformers), separated by commas",
    )
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens")
    parser.add_argument("--output", type=int, default=80, help="generated tokens")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds")
    arguments = parser.parse_args()
    if arguments.engine:
        serve(arguments)
        return
    pairs = [tuple(pair.split("/")) for pair in arguments.pairs.split(",")]
    print(f"{datetime.date.today()}, {processor()}, {arguments.threads} threads, {versions()}\n")
    print("| shape | llmcli | peer | prefill t/s | peer | ratio | decode t/s | peer | ratio |\n|" + "---|" * 9)
    for name in arguments.shapes.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_models(folder, SHAPES[name], sorted({theirs for _, theirs in pairs if theirs[0].isupper()}))
            for ours, theirs in pairs:
                peer = "llama.cpp" if theirs[0].isupper() else "transformers"
                children = [Child("llmcli", ours, folder, arguments.threads)]
                children.append(Child(peer, theirs, folder, arguments.threads))
                prompt = [(7 * i * i + 3) % 1000 for i in range(arguments.prompt)]
                speeds = compare(children, prompt, arguments.output, arguments.rounds)
                print_row([name, ours, children[1].name], *speeds.values())
                for child in children:
                    child.close()


def processor() -> str:
    """Return the processor's name if the system reports it, otherwise its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def versions() -> str:
    """Return the versions of the installed engines and of torch."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("llmcli", "torch", "transformers", "llama-cpp-python"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
