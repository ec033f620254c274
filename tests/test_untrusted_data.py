"""No code comes out of data: pickles, evaluated text and code from model repositories are not used, with few exceptions
that never meet a client or a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in ("rbee_serve", "deployments") for path in (ROOT / package).rglob("*.py"))

UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
    "cloudpickle.loads", "dill.loads", "joblib.load", "marshal.loads", "shelve.open", "torch.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "subprocess.getoutput",
}  # fmt: skip

PICKLES_BETWEEN_OWN_PROCESSES = {"rbee_serve/replica/backend_messages.py"}
"""A replica and the process that it has started for its backend, over a pipe that only these two hold."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(tree: ast.AST) -> Iterator[str]:
    """The unsafe calls in a module, with their lines."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in UNSAFE_CALLS:
            yield f"{node.lineno}: {name}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg == "trust_remote_code" and value is not False) or (keyword.arg == "shell" and value):
                yield f"{node.lineno}: {keyword.arg}"
            if keyword.arg == "allow_pickle" and value is not False:
                yield f"{node.lineno}: {keyword.arg}"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_a_module_turns_no_data_into_code(path: Path) -> None:
    found = list(unsafe(ast.parse(path.read_text())))
    if str(path.relative_to(ROOT)) in PICKLES_BETWEEN_OWN_PROCESSES:
        assert found
        assert all("pickle" in call for call in found)
    else:
        assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.loads(data)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=trust)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(unsafe(ast.parse(code)))
