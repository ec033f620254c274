"""Text that begins no stop sequence is streamed at once, and nothing else changes: vLLM's detokenizer without an
engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.vllm_runtime.stop_hold_back import begun_stop, patch_stop_hold_back

ALPHABET = "abé你🐝 "


def plainly_begun(text: str, stops: list[str]) -> int:
    """`begun_stop`, written as its definition."""
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=8), max_size=4))
def test_the_longest_end_with_which_a_stop_begins(text: str, stops: list[str]) -> None:
    assert begun_stop(text, stops) == plainly_begun(text, stops)


def test_ends_that_begin_a_stop() -> None:
    assert begun_stop("so he said", ["\n\nUser:"]) == 0
    assert begun_stop("so he said\n", ["\n\nUser:"]) == 1
    assert begun_stop("aab", ["aabaac", "ba"]) == 3
    assert begun_stop("xaab", ["abc", "b"]) == 2
    assert begun_stop("", ["abc"]) == begun_stop("abc", []) == begun_stop("a", ["a"]) == 0


@pytest.fixture
def tokenizer() -> Any:
    """Bytes as tokens, and a few tokens of several characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("b", "a"), ("ab", "ab"), ("a", "Ġ")]
    names = [*letters, *(left + right for left, right in merges)]
    bpe = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture
def detokenizer() -> Iterator[Any]:
    """vLLM's module; its class is as it was after the test."""
    import vllm.v1.engine.detokenizer as module

    base: Any = module.BaseIncrementalDetokenizer
    before = base.get_next_output_text
    yield module
    base.get_next_output_text = before


class Generation:
    """The text of a generation as it is streamed, `step` tokens at a time, until a stop or the end."""

    def __init__(self, module: Any, kind: str, tokenizer: Any, ids: list[int], step: int, **params: Any) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id="a",
            prompt_token_ids=tokenizer.encode("prompt "),
            mm_features=None,
            sampling_params=SamplingParams(**params),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.detokenizer = getattr(module, kind)(tokenizer, request)
        self.streamed: list[str] = []
        self.texts: list[str] = []
        self.stop: str | None = None
        for at in range(0, len(ids), step):
            self.stop = self.detokenizer.update(ids[at : at + step], False)
            finished = self.stop is not None or at + step >= len(ids)
            self.streamed.append(self.detokenizer.get_next_output_text(finished, True))
            self.texts.append(self.detokenizer.output_text)
            if finished:
                break

    @property
    def result(self) -> tuple[str, str | None, list[int]]:
        return "".join(self.streamed), self.stop, list(self.detokenizer.output_token_ids)


KINDS = ["FastIncrementalDetokenizer", "SlowIncrementalDetokenizer"]


@pytest.mark.vllm  # only imported
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_and_its_end_are_vllms_and_every_part_comes_as_soon_as_it_can(
    kind: str, detokenizer: Any, tokenizer: Any
) -> None:
    base = detokenizer.BaseIncrementalDetokenizer
    plain = getattr(base.get_next_output_text, "__wrapped__", base.get_next_output_text)  # another test patches it
    patch_stop_hold_back()
    patch_stop_hold_back()
    patched = base.get_next_output_text
    assert patched.__wrapped__ is plain

    @settings(max_examples=150, deadline=None)
    @given(
        st.text(ALPHABET, max_size=24),
        st.lists(st.text(ALPHABET, min_size=1, max_size=7), max_size=3),
        st.integers(1, 3),
        st.booleans(),
        st.integers(0, 6),
    )
    def check(text: str, stops: list[str], step: int, include: bool, min_tokens: int) -> None:
        ids = tokenizer.encode(text)
        arguments = (detokenizer, kind, tokenizer, ids, step)
        params: dict[str, Any] = {
            "stop": stops or None,
            "include_stop_str_in_output": include,
            "min_tokens": min_tokens,
            "max_tokens": 99,
        }
        base.get_next_output_text = plain
        expected = Generation(*arguments, **params)
        base.get_next_output_text = patched
        found = Generation(*arguments, **params)
        assert found.result == expected.result
        whole = found.result[0]
        for number in range(len(found.streamed)):
            so_far, before = "".join(found.streamed[: number + 1]), "".join(expected.streamed[: number + 1])
            assert whole.startswith(so_far)
            assert so_far.startswith(before)
            if number + 1 < len(found.streamed):
                held_back = 0 if include else plainly_begun(found.texts[number], stops)
                assert so_far == found.texts[number][: len(found.texts[number]) - held_back]

    check()


@pytest.mark.vllm  # only imported
def test_a_stop_that_never_comes_delays_nothing(detokenizer: Any, tokenizer: Any) -> None:
    patch_stop_hold_back()
    ids = tokenizer.encode("ab ab ba" * 3)
    found = Generation(detokenizer, KINDS[0], tokenizer, ids, 1, stop=["x" * 49], max_tokens=99)
    assert all(found.streamed)


@pytest.mark.vllm  # only imported
def test_a_stop_across_tokens_and_the_bytes_of_a_character_is_never_seen(detokenizer: Any, tokenizer: Any) -> None:
    patch_stop_hold_back()
    ids = tokenizer.encode("aé你🐝 rest")
    found = Generation(detokenizer, KINDS[0], tokenizer, ids, 1, stop=["你🐝"], max_tokens=99)
    assert found.result[:2] == ("aé", "你🐝")
