"""The layers hold: a file imports only from its own layer and those below, and only some import heavy libraries."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import llmcli

PACKAGE = Path(llmcli.__file__).parent
# From the bottom up. Folders and files of one row may import each other (a folder's own files do).
LAYERS = [
    "errors",
    "lazy",
    "files",
    "model",
    "storage",
    "engine",
    "text",
    "generation",
    "explain",
    "train",
    "hub",
    "endpoint",
    "serve",
    "render",
    "commands",
    "cli",
    "__main__",
]
FORBIDDEN = {
    "rich": set(LAYERS) - {"render"},
    "click": set(LAYERS) - {"commands", "cli"},
    "torch": {"errors", "lazy", "text", "hub", "endpoint", "render", "cli", "__main__"},
    "httpx2": set(LAYERS) - {"endpoint"},
    "starlette": set(LAYERS) - {"serve"},
    "uvicorn": set(LAYERS) - {"serve"},
    "jinja2": set(LAYERS) - {"text"},
    "prompt_toolkit": set(LAYERS) - {"commands"},
    "huggingface_hub": set(LAYERS) - {"hub"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, *, top_level: bool = False) -> list[str]:
    """Every module that a file imports, including imports inside functions unless ``top_level``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_imports_run_downwards() -> None:
    for path in FILES:
        own = layer_of(path)
        if own == "__init__":
            continue
        assert own in LAYERS, f"{own} is not in LAYERS"
        for name in imports(path):
            if name.startswith("llmcli."):
                other = name.split(".")[1]
                if other in LAYERS:
                    assert LAYERS.index(other) <= LAYERS.index(own), f"{path} imports {name} from above"
            library = name.split(".")[0]
            assert own not in FORBIDDEN.get(library, set()), f"{path} imports {library}"


def test_commands_import_nothing_heavy_before_they_run() -> None:
    heavy = {"torch", "httpx2", "tokenizers", "safetensors", "rich", "numpy", "llguidance", "prompt_toolkit"}
    for path in (PACKAGE / "commands").rglob("*.py"):
        assert not heavy & {name.split(".")[0] for name in imports(path, top_level=True)}, path


def test_importing_every_command_imports_nothing_heavy() -> None:
    """Neither directly nor through other modules of llmcli."""
    names = ["torch", "httpx2", "tokenizers", "safetensors", "rich", "numpy", "llguidance", "prompt_toolkit", "jinja2"]
    files = [path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / "commands").rglob("*.py")]
    modules = ", ".join(".".join(file.parts).removesuffix(".__init__") for file in sorted(files))
    code = f"import sys, llmcli.cli, {modules}; print(*set(sys.modules).intersection({names}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_hub_imports_huggingface_hub_only_when_it_downloads() -> None:
    for path in (PACKAGE / "hub").glob("*.py"):
        assert not [name for name in imports(path, top_level=True) if name.startswith("huggingface_hub")], path


def test_the_walk_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import os\ndef f():\n    from llmcli.render import table\n")
    assert "llmcli.render.table" in imports(file)
    assert imports(file, top_level=True) == ["os"]


def test_no_model_names_outside_families() -> None:
    for path in FILES:
        if "families" in path.parts or layer_of(path) == "train":
            continue
        if path.parts[-2:] == ("gguf", "vocabulary.py"):  # there, these are names of kinds of tokenizers
            continue
        literals = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        ]
        assert not {"llama", "gpt2"} & {value for value in literals if isinstance(value, str)}, path


LIBRARY = {"errors", "files", "model", "storage", "engine", "text", "generation", "explain", "train", "hub", "endpoint"}
LIBRARY |= {"serve"}
LIBRARY_FILES = [path for path in FILES if layer_of(path) in LIBRARY]
OPTION = re.compile(r"(?<![\w-])--[a-z]")


def strings(tree: ast.AST) -> list[str]:
    """The string literals in a module that are not docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_the_library_names_no_options() -> None:
    for path in LIBRARY_FILES:
        named = [text for text in strings(ast.parse(path.read_text(encoding="utf-8"))) if OPTION.search(text)]
        assert not named, f"{path}: a hint that names an option belongs in commands/shell/hints.py"


def test_a_download_does_not_wait_for_torch() -> None:
    code = "import sys, llmcli.hub.downloads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
