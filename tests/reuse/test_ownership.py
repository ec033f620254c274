"""Which modules a worker type owns."""

from pathlib import Path

from deployments.registry import WORKER_TYPES
from scripts.reuse.ownership import COMMON, owned_modules

ROOT = Path(__file__).resolve().parents[2]


def owned(tmp_path: Path, types: list[str], **sources: str) -> dict[str, list[str]]:
    package = tmp_path / "deployments"
    package.mkdir()
    for module, source in {"__init__": "", "app": "", "registry": "", **sources}.items():
        (package / f"{module}.py").write_text(source)
    registry = {name: f"deployments.{name}:SPEC" for name in types}
    return {
        name: [module.removeprefix("deployments.") for module in modules]
        for name, modules in owned_modules(tmp_path, registry).items()
    }


def test_a_type_owns_its_module_and_what_that_imports(tmp_path: Path) -> None:
    found = owned(
        tmp_path,
        ["llm", "echo"],
        llm="from deployments import vllm_terms\nfrom deployments.vllm_runtime.vllm_engine import start",
        vllm_terms="",
        vllm_engine="def start():\n    import deployments.vllm_files",
        vllm_files="from deployments.registry import WORKER_TYPES",
        echo="",
    )
    assert found == {"llm": ["llm", "vllm_engine", "vllm_files", "vllm_terms"], "echo": ["echo"]}


def test_what_a_family_shares_counts_for_each_of_its_types(tmp_path: Path) -> None:
    found = owned(
        tmp_path,
        ["llm", "multimodal"],
        llm="import deployments.vllm_runtime.vllm_engine",
        multimodal="import deployments.vllm_runtime.vllm_engine",
        vllm_engine="",
    )
    assert found == {"llm": ["llm", "vllm_engine"], "multimodal": ["multimodal", "vllm_engine"]}


def test_a_module_may_be_named_in_a_string(tmp_path: Path) -> None:
    found = owned(
        tmp_path,
        ["audio", "echo"],
        audio='ENGINES = {"x": "deployments.x_engine", "y": "deployments.y_engine:load"}',
        x_engine="",
        y_engine="",
        echo="",
    )
    assert found == {"audio": ["audio", "x_engine", "y_engine"], "echo": ["echo"]}


def test_a_module_that_no_type_imports_belongs_to_those_whose_modules_it_imports(tmp_path: Path) -> None:
    found = owned(
        tmp_path,
        ["llm", "echo"],
        llm="import deployments.vllm_runtime.vllm_engine",
        vllm_engine="",
        vllm_plugin="import deployments.vllm_runtime.vllm_engine, deployments.vllm_runtime.cpu_shm_wakeup",
        vllm_waiting="",
        echo="",
    )
    assert found == {"llm": ["llm", "vllm_engine", "vllm_plugin", "vllm_waiting"], "echo": ["echo"]}


def test_every_module_of_ours_belongs_to_a_type_or_is_common() -> None:
    claimed = {path for modules in owned_modules(ROOT, WORKER_TYPES).values() for path in modules.values()}
    common = {module.replace(".", "/") + ".py" for module in COMMON - {"deployments"}} | {"deployments/__init__.py"}
    assert {path.relative_to(ROOT).as_posix() for path in claimed} | common == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "deployments").rglob("*.py")
    }
