"""The verdict on each worker type."""

from pathlib import Path

import pytest

from scripts.reuse.__main__ import Row, rows, table


def test_a_type_is_held_to_what_the_plan_expected_of_it() -> None:
    assert Row("embedding", own=150, family=0, shared=850).verdict == "kept"
    assert Row("embedding", own=151, family=0, shared=849).verdict == "BROKEN"
    assert Row("embedding", own=0, family=151, shared=849).verdict == "BROKEN"
    assert Row("audio", own=200, family=0, shared=800).verdict == "kept"
    assert Row("multimodal", own=150, family=0, shared=850).verdict == "BROKEN"


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("embedding", 750),
        ("audio/transcribe", 1000),
        ("audio/generate", 1000),
        ("vision/classify", 1000),
        ("multimodal", 500),
    ],
)
def test_a_type_has_fewer_lines_of_its_own_than_the_plan_expected(name: str, plan: int) -> None:
    assert Row(name, own=plan - 1, family=0, shared=99_999).verdict == "kept"
    assert Row(name, own=plan, family=0, shared=99_999).verdict == "BROKEN"


@pytest.mark.parametrize("name", ["llm", "echo", "reranker"])
def test_a_type_of_which_the_plan_says_nothing_is_only_held_to_what_it_shares(name: str) -> None:
    assert Row(name, own=2000, family=0, shared=99_999).verdict == "kept"


def test_a_type_that_was_not_recorded_is_not_kept() -> None:
    assert Row("embedding", own=150, family=0, shared=0).verdict == "NOT RECORDED"


def test_what_a_family_has_in_common_is_divided_among_its_types(tmp_path: Path) -> None:
    for path, source in {
        "deployments/llm/llm_worker.py": "import deployments.engine\n",
        "deployments/embedding/embedding_worker.py": "import deployments.engine\nx = 1\n",
        "deployments/multimodal/multimodal_worker.py": "import deployments.llm.llm_worker\nx = 1\ny = 2\n",
        "deployments/engine.py": "# an engine\na = 1\nb = 2\nc = 3\nd = 4\n",
        "rbee_serve/sse.py": "a = 1\nif a:\n    b = 2\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(source)
    types = {name: f"deployments.{name}:SPEC" for name in ("llm", "embedding", "multimodal")}
    found = rows(tmp_path, types, {"llm": {"rbee_serve/sse.py": [1, 2]}})
    assert found[:2] == [Row("llm", own=1, family=2, shared=2), Row("embedding", own=2, family=2, shared=0)]
    assert found[2] == Row("multimodal", own=3, family=0, shared=0)  # what it builds on was written for the others
    assert "90 %, 500 own" in list(table(found))[3]
