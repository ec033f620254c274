"""Which text vLLM keeps back from a stream because a stop sequence may have begun in it.

vLLM keeps back as many characters as the longest stop sequence has, less one, whatever they are: a stop sequence that
never comes delays every token. Here it keeps back the end of the text that is the beginning of a stop sequence, which
mostly is nothing. The whole text, and where it ends, are vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.vllm_runtime.private_api import STOP_HOLD_BACK, fits


def patch_stop_hold_back() -> None:
    """Replace vLLM's rule in this process, for requests made from now on, where vLLM fits (`STOP_HOLD_BACK`)."""
    if not fits(STOP_HOLD_BACK):
        return
    import vllm.v1.engine.detokenizer as detokenizer

    base: Any = detokenizer.BaseIncrementalDetokenizer
    if not hasattr(base.get_next_output_text, "__wrapped__"):
        base.get_next_output_text = _with_hold_back(base.get_next_output_text)


def begun_stop(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` with which a stop sequence begins, but is not complete."""
    longest = 0
    for stop in stops:
        size = min(len(stop) - 1, len(text))
        tail = text[len(text) - size :]
        at = tail.find(stop[0])
        while at != -1 and size - at > longest:
            if stop.startswith(tail[at:]):
                longest = size - at
                break
            at = tail.find(stop[0], at + 1)
    return longest


def _with_hold_back(vllms: Any) -> Any:
    def get_next_output_text(self: Any, finished: bool, delta: bool) -> Any:
        if not finished and self.stop and not self.include_stop_str_in_output:
            self.stop_buffer_length = begun_stop(self.output_text, self.stop)
        return vllms(self, finished, delta)

    get_next_output_text.__wrapped__ = vllms  # type: ignore[attr-defined]
    return get_next_output_text
