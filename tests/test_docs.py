"""The documents are correct: their commands and code run as printed, their links work, their tables are complete.

The word after a fence's language is for these tests:

- ```` ```sh ```` and ```` ```python ```` run, in the order of the document;
- ```` ```sh endpoint ```` runs with a server of the tests in place of the one in the document;
- ```` ```sh no-run ```` needs torchrun, a real model or minutes: its llmcli commands are parsed, its scripts exist.

A command that several documents print runs once.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import llmcli
from llmcli.cli import COMMANDS, cli
from llmcli.generation.filters import OPTIONS, default_order
from llmcli.hub import default_model, find
from llmcli.model.families import FAMILIES
from tests.endpoint_server import Endpoint
from tests.hub_server import Hub
from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(path.relative_to(ROOT).as_posix()): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
SERVER = "http://localhost:8311"
HUB_MODELS = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")
TEMPLATE_WITH_SYSTEM = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
# Appended to the commands that begin with these words, to shorten them: the last value of an option counts.
TINY = "--tokens 1280 --hidden-size 16 --num-attention-heads 2 --num-hidden-layers 1 --context 64 --vocab-size 300"
SHORTER = {
    "llmcli train stories.txt --out my-model --tokens": TINY,
    "llmcli train requests.jsonl": "--tokens 1280",
    "llmcli train pairs.jsonl": "--tokens 1280",
    "llmcli bench": "-p 4 -n 2 -r 1",
    'llmcli generate "Once upon a time"': "-n 12",
    'llmcli generate "The fox said" --temperature': "-n 12",
    "llmcli generate -m tales-int4": "-n 12",
    "llmcli chat": "-n 8",
    "llmcli explain ": "-n 1",
}
OTHER_PROGRAMS = {
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-endpoint",
    "--context",
    "--batch-size",
    "--steps",
    "--index-url",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, with its language and the word after it."""

    document: str
    language: str
    mark: str
    text: str


def blocks_of(document: str) -> list[Block]:
    found = re.findall(r"^```(\w*) ?([\w-]*)\n(.*?)^```$", DOCUMENTS[document], re.DOTALL | re.MULTILINE)
    return [Block(document, *parts) for parts in found]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def lines_of(*, mark: str, document: str | None = None) -> list[str]:
    """The lines of the shell blocks with this mark, without the command that sets up an environment."""
    shell = [b for b in BLOCKS if b.language == "sh" and b.mark == mark and document in (None, b.document)]
    return [line for block in shell for line in block.text.splitlines() if "-m venv" not in line]


def invoke(line: str) -> Result:
    """Run a line of a document: a llmcli command, with the echo, the file or the eval around it."""
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
    given = "The fox\n" if line.startswith("llmcli chat") else None
    if " | " in line:
        echo, line = line.split(" | ")
        given = shlex.split(echo)[1] + "\n"
    if " < " in line:
        line, file = line.split(" < ")
        given = (ROOT / file).read_text(encoding="utf-8")
    more = [extra for start, extra in SHORTER.items() if line.startswith(start)]
    program, *words = shlex.split(" ".join([line, *more]))
    assert program == "llmcli"
    return CliRunner().invoke(cli, words, input=given, catch_exceptions=False)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name. All documents share it, so that a command can run only once."""
    folder = tmp_path_factory.mktemp("desk")
    texts = (f"Once upon a time there was a {a}. It had a {b}." for a in ("fox", "hen") * 15 for b in "xyz")
    (folder / "stories.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    requests = [{"prompt": f"Tell {n}", "completion": f"Told {n}"} for n in range(40)]
    pairs = [{"prompt": f"Tell {n}", "chosen": f"Told {n}", "rejected": "No"} for n in range(40)]
    prompts = [{"prompt": "The fox", "max_tokens": 50}]
    for name, lines in (("requests", requests), ("pairs", pairs), ("prompts", prompts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    return folder


@pytest.fixture(scope="module")
def done() -> set[str]:
    """The lines that have run."""
    return set()


@pytest.fixture
def hub_of_the_documents(hub: Hub) -> None:
    """A hub on which the models of the documents are the shipped one, under their names."""
    files = {path.name: path.read_bytes() for path in find(default_model()).iterdir()}
    hub.add(files, HUB_MODELS[0])
    hub.add({**files, "chat_template.jinja": TEMPLATE_WITH_SYSTEM.encode()}, HUB_MODELS[1])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_run_as_printed(
    document: str, desk: Path, done: set[str], hub_of_the_documents: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr("llmcli.commands.options.run_log.config_folder", lambda: desk / "config")
    for line in lines_of(mark="", document=document):
        if line in done:
            continue
        if found := re.fullmatch(r"(echo .*) (>>?) (\S+)", line):
            echo, mode, file = found.groups()
            with Path(file).open("a" if mode == ">>" else "w", encoding="utf-8") as written:
                written.write(shlex.split(echo)[1] + "\n")
            continue
        result = invoke(line)
        assert result.exit_code == 0, (line, result.stderr)
        assert result.stdout or re.search(r" (train|rm|batch|quantize|explain) ", line), line
        if not any(name in line for name in HUB_MODELS):  # each test has its own hub
            done.add(line)


def test_commands_with_a_server_run_as_printed(
    desk: Path, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_bytes((desk / "prompts.jsonl").read_bytes())
    lines = lines_of(mark="endpoint")
    assert lines
    for line in lines:
        result = invoke(line.replace(SERVER, endpoint.url))
        assert result.exit_code == 0, (line, result.stderr)


def test_a_prompt_cache_is_used_the_second_time(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    (line,) = [line for line in lines_of(mark="") if "--prompt-cache" in line]
    invoke(line)
    assert "tokens reused" in invoke(line).stderr


@pytest.mark.parametrize("line", lines_of(mark="no-run"))
def test_commands_that_are_not_run_parse(line: str) -> None:
    program, *words = shlex.split(line)
    command = re.search(r"(?:^|-m )llmcli (.*)$", line)
    if command is not None:
        parse(command[1])
    elif program == "python":
        assert (ROOT / (words[2] if words[:2] == ["-m", "pytest"] else words[0])).exists()
    else:
        assert program in ("pip", "pre-commit", "ruff", "mypy", ".", "echo", "ollama", "llm"), line


def parse(line: str) -> None:
    """Check the options of a command line, after ``llmcli``, without running it."""
    name, *words = shlex.split(line.split(" < ")[0])
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None, name
    command.make_context(name, words, resilient_parsing=False).close()


@pytest.mark.parametrize("document", sorted({block.document for block in BLOCKS if block.language == "python"}))
def test_the_code_of_a_document_runs(document: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run one after another."""
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    for block in blocks_of(document):
        if block.language == "python":
            code = compile(block.text, document, "exec")
            if block.mark != "no-run":
                exec(code, names)


def test_the_config_file_of_the_documents_has_no_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in BLOCKS if block.language == "toml"]
    (tmp_path / "config.toml").write_text(block.text, encoding="utf-8")
    monkeypatch.setenv("LLMCLI_CONFIG", str(tmp_path / "config.toml"))
    result = CliRunner().invoke(cli, ["config", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert not shown["faults"]
    assert len(shown["options"]) == 3


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^.*pytest$", DOCUMENTS["README.md"], re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_versions_in_the_project_files_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (tested,) = re.findall(r"^ +python: (\[.*\])$", workflow, re.MULTILINE)
    assert json.loads(tested) == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    releases = re.findall(r"^## \[(\d.*)\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert releases[0] == llmcli.__version__


def test_every_example_of_help_is_a_command_line_that_parses() -> None:
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help is not None
        examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith(f"llmcli {name}")]
        assert examples, name
        for example in examples:
            parse(example.removeprefix("llmcli "))


def test_every_command_is_documented() -> None:
    printed = "\n".join(DOCUMENTS.values())
    assert not [name for name in COMMANDS if f"llmcli {name}" not in printed]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_of_a_document_exists(document: str) -> None:
    commands = [cli.get_command(None, name) for name in COMMANDS]  # type: ignore[arg-type]
    known = {
        word
        for command in commands
        if command
        for option in command.params
        for word in (*option.opts, *option.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCUMENTS[document]))
    assert named <= known | OTHER_PROGRAMS | {"--help", "--version"} | scripts_options(document)


def scripts_options(document: str) -> set[str]:
    """The options of other programs in a document's shell blocks."""
    lines = [line for block in blocks_of(document) if block.language == "sh" for line in block.text.splitlines()]
    return {word for line in lines if not re.search(r"\bllmcli ", line) for word in line.split() if word[:2] == "--"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    here = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[document]):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (here / file).resolve() if file else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_document_names_exist(document: str) -> None:
    named = re.findall(r"`([\w./]+/|[\w./]*/?[a-z_]+\.(?:py|md|toml|yml))`", DOCUMENTS[document])
    assert named
    made = {"recipe.toml", "llmcli/commands/NAME.py"}  # by a run, and by you
    for name in set(named) - made:
        assert (ROOT / name).exists() or (ROOT / "llmcli" / name).exists(), name


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\((docs/[\w-]+\.md)", DOCUMENTS["README.md"]))
    assert linked == {name for name in DOCUMENTS if name.startswith("docs/")}


def test_every_picture_is_shown_and_drawn_by_the_script() -> None:
    shown = {Path(name).stem for text in DOCUMENTS.values() for name in re.findall(r"\(([\w/-]+\.svg)\)", text)}
    script = (ROOT / "docs" / "make_pictures.py").read_text(encoding="utf-8")
    assert shown == {path.stem for path in (ROOT / "docs").glob("*.svg")}
    assert all(f'"{name}"' in script or f"{name}.svg" in script for name in shown)


def test_the_table_of_families_is_complete() -> None:
    section = DOCUMENTS["docs/models.md"].split("## Supported families")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FAMILIES)


def test_the_table_of_layers_is_that_of_the_layers_test() -> None:
    section = DOCUMENTS["docs/architecture.md"].split("## Layers")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`(\w+)", row)] == LAYERS


def test_the_family_that_is_added_in_the_document_is_written_so() -> None:
    section = DOCUMENTS["docs/architecture.md"].split("## Add a model family")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    files = ("llmcli/model/families/llama.py", "llmcli/model/families/__init__.py", "tests/tiny.py")
    for block, file in zip(blocks, files, strict=True):
        written = [line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
        printed = [line.strip() for line in block.splitlines()]
        start = written.index(printed[0])
        rest = iter(written[start:])  # has every line in this order; its docstring is longer
        assert [line for line in printed if line.removesuffix('"""') not in rest] == []


def test_the_table_of_filters_has_all_of_them_in_the_order_in_which_they_run() -> None:
    rows = re.findall(r"^\| `--([a-z-]+).*\| (.*) \|$", DOCUMENTS["docs/generating.md"], re.MULTILINE)
    filters = default_order()
    assert tuple(name for name, _ in rows if name in filters) == filters
    assert {name for name, _ in rows} == {*filters, *OPTIONS}
    off = {name: option.off for name, option in OPTIONS.items()}
    assert all(float(value) == off[name] for name, value in rows if off.get(name) is not None)


def test_every_command_with_json_is_in_the_document_of_formats() -> None:
    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        if any("--json" in option.opts for option in command.params):
            assert re.search(rf"^{name} |`{name} --json`", DOCUMENTS["docs/json.md"], re.MULTILINE), name


VIEW_OPTIONS = {
    "attend --head": ["1.1"],
    "decide": ["--choices", "a,the"],
    "compare": ["-m", "llama-tales-12m"] * 2,
    "patch": ["Once upon a day there was", "--token", "7", "--vs", "9"],
}


def test_the_formats_of_the_views_are_as_documented(tmp_path: Path) -> None:
    """The outermost keys of each view's object, all and in this order."""
    view = r"^(tokenize --merges|attend --head|[a-z]+) +(\{.*?)(?=\n\S|\n```)"
    documented = re.findall(view, section_of_json("Views"), re.DOTALL | re.MULTILINE)
    assert documented
    for name, form in documented:
        text = [] if name == "inspect" else ["king" if name == "neighbours" else "Once upon a time there was"]
        if name == "steer":
            files = [str(ROOT / f"docs/examples/{file}.txt") for file in ("sad", "happy")]
            text = [*files, str(tmp_path / "x.gguf")]
        (written,) = written_by([*name.split(), *VIEW_OPTIONS.get(name, []), *text, "--json"])
        assert list(written) == keys(form), name


def test_the_formats_of_the_other_commands_are_as_documented(tmp_path: Path) -> None:
    generated = written_by(["generate", "The fox", "-n", "2", "--json"])
    forms = forms_of("generate")
    assert [list(generated[at]) for at in (0, 1, -1)] == [keys(form) for form in forms]
    (tokens,) = written_by(["tokenize", "The fox", "--json"])
    saved = tmp_path / "chat.json"
    saved.write_text('{"messages": [{"role": "user", "content": "The fox"}]}', encoding="utf-8")
    (chat,) = written_by(["tokenize", "--chat", str(saved), "--json"])
    assert [list(tokens), list(chat)] == [keys(form) for form in forms_of("tokenize")]
    step = ["explain-step", "The fox", "--temperatures", "0,1", "--json"]
    assert [list(*written_by(step))] == [keys(form) for form in forms_of("explain-step")]
    assert [list(written_by(["models", "--json"])[0])] == [keys(form) for form in forms_of("models")]
    bench = ["bench", "-p", "4", "-n", "2", "-r", "1", "--json"]
    assert [list(*written_by(bench))] == [keys(form) for form in forms_of("bench")]
    (tmp_path / "in.jsonl").write_text('{"prompt": "The fox", "max_tokens": 2}\n', encoding="utf-8")
    written_by(["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")])
    asked = ["batch", str(tmp_path / "in.jsonl"), str(tmp_path / "choices.jsonl"), "--choices", "ran,slept"]
    written_by(asked)
    written = [json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("out.jsonl", "choices.jsonl")]
    assert [list(each) for each in written] == [keys(form) for form in forms_of("batch")]
    chat = CliRunner().invoke(cli, ["chat", "-n", "2", "--chat", str(tmp_path / "chat.json")], input="Hello\n")
    assert chat.exit_code == 0, chat.stderr
    saved = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    shown = written_by(["config", "--json"])[0]
    assert [list(saved), list(shown)] == [keys(form) for form in forms_of("Saved chats and config")]


def test_the_findings_of_the_lessons_hold() -> None:
    """Those that name a number of `decide`, `why` or `lens`."""
    lessons = DOCUMENTS["docs/classroom.md"]
    (girl,) = written_by(["decide", "Once upon a time there was a little", "--choices", "girl,boy,dragon", "--json"])
    assert f"expects {100 * girl['choices'][0]['p']:.0f} to go on" in lessons
    assert f"About {girl['outside']:.2f} is left" in lessons
    text = "Tom was a boy. Lily was a girl. Lily lost"
    asked = ["decide", text, "--choices", "her,his", "--json"]
    rows = [written_by([*asked, *more])[0]["choices"] for more in ([], ["--ablate", "4.4"], ["--ablate", "3.2"])]
    (whole, without, other) = [[row["p"] for row in each] for each in rows]
    assert f"p of `·her` falls from {whole[0]:.2f} to {without[0]:.2f}" in lessons
    assert 3.5 < without[1] / whole[1] < 4.7
    assert other[0] > whole[0]
    (why,) = written_by(["why", text, "--token", " her", "--vs", " his", "--json"])
    (part,) = [part for part in why["parts"] if part["name"] == "L4.H4"]
    assert f"{part['difference']:+.2f} of the difference of {why['total']['difference']:.2f}" in lessons
    (lens,) = written_by(["lens", "The sun was shining and the birds were", "--json"])
    assert f"has rank {lens['rows'][0]['rank']}; only the last layer puts it first" in lessons
    assert [row["layer"] for row in lens["rows"] if row["rank"] == 0] == [lens["rows"][-1]["layer"]]


def section_of_json(heading: str) -> str:
    return DOCUMENTS["docs/json.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]


def forms_of(heading: str) -> list[str]:
    """The forms in a section of json.md. Each begins a line."""
    fenced = re.findall(r"^```\n(.*?)^```$", section_of_json(heading), re.DOTALL | re.MULTILINE)
    return [form for block in fenced for form in re.split(r"\n(?=\{)", block)]


def written_by(words: list[str]) -> list[dict[str, Any]]:
    """The JSON objects that a command prints."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def keys(form: str) -> list[str]:
    """The outermost keys of a form, such as ``{"a", "b":[{"c"}]}``."""
    outermost, depth = "", 0
    for char in form:
        depth += (char in "[{") - (char in "]}")
        outermost += char if depth == 1 else ""
        if depth == 0:
            break
    return re.findall(r'(?<!:)"(\w+)"', outermost)
