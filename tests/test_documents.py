"""The documents name only files, links, make targets and configuration keys that exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from rbee_serve.config import (
    ApplicationConfig,
    AuthConfig,
    CorsConfig,
    KeyConfig,
    LimitsConfig,
    OrchestratorConfig,
    TlsConfig,
    WorkerConfig,
)

ROOT = Path(__file__).resolve().parent.parent
MAX_README_LINES = 200
NO_PATH = re.compile(r"[A-Z]{3,}/|/[A-Z]{3,}\b(?!\.md)|[*<>{}…=@]|^[a-z]+:|^[/~.]")
"""Placeholders (`deployments/TYPE`), URLs, absolute paths, options."""

LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
SUFFIX = re.compile(r"\.(py|md|ya?ml|txt|toml|ipynb|json|svg|png|csv)$")


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), ROOT / "benchmarks/RESULTS.md"]
    return sorted(set(found))


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def without_code(text: str) -> str:
    return CODE.sub("", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def committed() -> frozenset[str]:
    """Committed files and their folders, as paths from the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [Path(line) for line in listed.stdout.splitlines()]
    return frozenset(str(path) for file in files for path in (file, *file.parents))


def missing_files(path: Path) -> Iterator[str]:
    """Paths in backticks that exist neither below the root nor beside the document."""
    beside = path.parent.relative_to(ROOT)
    for code in CODE.findall(FENCE.sub("", path.read_text())):
        for word in code.split():
            word = word.rstrip(",;:")
            is_path = word.endswith("/") or (SUFFIX.search(word) and "/" in word)
            if not is_path or NO_PATH.search(word):
                continue
            if not {word.rstrip("/"), str(beside / word)} & committed():
                yield word


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", named(documents()))
def test_relative_links_lead_to_a_file_and_a_heading(name: str) -> None:
    path = ROOT / name
    broken = []
    for match in LINK.finditer(without_code(path.read_text())):
        file, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", file):
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(match["target"])
    assert not broken


@pytest.mark.parametrize("name", named(documents()))
def test_files_that_a_document_names_exist(name: str) -> None:
    assert not list(missing_files(ROOT / name))


@pytest.mark.parametrize("name", named(documents()))
def test_make_targets_that_a_document_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    code = "\n".join([*FENCE.findall(text), *CODE.findall(FENCE.sub("", text))])
    targets = set(re.findall(r"^\s*make ([a-z][a-z-]*)", code, re.MULTILINE))
    assert targets <= make_targets()


CONFIG_MODELS = [
    WorkerConfig,
    ApplicationConfig,
    AuthConfig,
    KeyConfig,
    CorsConfig,
    LimitsConfig,
    OrchestratorConfig,
    TlsConfig,
]


@pytest.mark.parametrize("model", CONFIG_MODELS)
def test_every_configuration_key_is_documented(model: type[BaseModel]) -> None:
    documented = set(CODE.findall((ROOT / "docs" / "configuration.md").read_text()))
    keys = {part for key in documented for part in key.split(".")}
    assert not model.model_fields.keys() - keys


def test_every_page_of_docs_begins_with_what_the_reader_can_do_after_it() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    assert pages
    for page in pages:
        title, blank, first, *_ = page.read_text().splitlines()
        assert title.startswith("# ")
        assert not blank
        assert first.startswith("After this page you "), page.name


def test_the_readme_links_to_every_page_of_docs() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme]
