"""Names of control tokens in the texts of users."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from deployments.torch_runtime.literal_text import ControlNames


def control_names(*names: str, ordinary: str = "ordinary") -> ControlNames:
    tokens = [SimpleNamespace(content=name, special=True) for name in names]
    tokens.append(SimpleNamespace(content=ordinary, special=False))
    return ControlNames(SimpleNamespace(added_tokens_decoder=dict(enumerate(tokens))))


@pytest.mark.parametrize(
    ("names", "text", "result"),
    [
        (["[SEP]"], "a [SEP] b", "a [ SEP] b"),
        (["<s>", "</s>", "<sep>"], "<s><sep></s><se>", "< s>< sep>< /s><se>"),
        (["<u1>", "<u10>", "<u"], "<u1 <u10>", "< u1 < u10>"),
        (["xx"], "xxxxx", "x x x x x"),
        (["a", ".*"], "a b", "a b"),
        ([], "anything", "anything"),
        (["<" + "x" * 5000 + ">"], "<<" + "x" * 5000 + ">", "<< " + "x" * 5000 + ">"),
        ([" <mask>", "  "], "a  <mask>", "a  < mask>"),
        (["<u1>", "<u<u"], "<u<u1>", "< u< u1>"),
    ],
)
def test_a_name_is_split_after_its_first_character(names: list[str], text: str, result: str) -> None:
    found = control_names(*names)
    assert found.split(text) == result
    assert found.found_in(text) == (result != text)
    assert not found.found_in(result)


@pytest.mark.parametrize("text", ["<" * 131_072, "<unused" * 18_000, "<unused6" * 16_000, "<unused61>" * 13_000])
def test_thousands_of_names_cost_no_more_than_one(text: str) -> None:
    names = control_names(*(f"<unused{number}>" for number in range(6242)), "[SEP]")
    before = time.process_time()
    names.split(text)
    assert time.process_time() - before < 0.7  # 8 s where each name is tried at each character
