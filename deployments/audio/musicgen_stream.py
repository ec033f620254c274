"""MusicGen audio in pieces, decoded while its tokens are still being sampled.

The model samples one token of each codebook per step. Its codec decodes frames: a frame is one token of every codebook.
`generate` blocks until the whole sequence is sampled, so it runs in a thread that alternates with the consumer: it is
paused while a piece is decoded and until the next piece is requested.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.audio.encoding import Samples

FIRST_PIECE_S = 1.0
NEXT_PIECES_S = 2.0
LEFT_CONTEXT_S = 2.0
"""Audio before a piece that is decoded again with it, because the codec has a state."""
RIGHT_CONTEXT_S = 0.2
"""Audio after a piece that is sampled before the piece is decoded: the codec looks ahead by about five frames."""


def can_stream(model: Any) -> bool:
    """Whether the codec decodes a position independently of the whole, and the length is known in advance."""
    codec = model.config.audio_encoder
    norm, eos_token_id = getattr(codec, "norm_type", None), model.generation_config.eos_token_id
    return codec.model_type == "encodec" and norm == "weight_norm" and eos_token_id is None


class MusicStream:
    """The audio of `tokens` tokens of a MusicGen. `arguments` are further arguments of `generate`."""

    def __init__(self, model: Any, tokens: int, arguments: dict[str, Any]) -> None:
        self._model = model
        settings = copy.deepcopy(model.generation_config)
        settings.update(max_length=None, max_new_tokens=tokens, return_dict_in_generate=False)
        self._arguments = {**arguments, "generation_config": settings}
        self._channels = model.config.decoder.audio_channels
        # Codebook k starts k tokens late; the codebooks of left and right alternate.
        self._delays = [index // self._channels for index in range(model.config.decoder.num_codebooks)]
        self._frames = tokens - self._delays[-1]
        self._codec = model.audio_encoder
        self._hop = self._codec.config.hop_length
        self._left_context, self._right_context, first, following = (
            max(1, round(seconds * self._codec.config.sampling_rate / self._hop))
            for seconds in (LEFT_CONTEXT_S, RIGHT_CONTEXT_S, FIRST_PIECE_S, NEXT_PIECES_S)
        )
        self._ends = [*range(first, self._frames - self._right_context, following), self._frames]
        self.count = len(self._ends)
        """Number of pieces."""

    def pieces(self) -> Generator[Samples, None, None]:
        """One continuous signal. Each piece is cross-faded into the next for one frame, because the codec's state
        differs there. Raises what `generate` raises; closing the generator stops `generate` at once."""
        import numpy as np

        overlap = self._hop  # every piece and every context is at least one frame
        ramp = np.linspace(0, 1, overlap, dtype=np.float32)
        tail: Samples | None = None
        begin = 0
        tokens = alternating(self._generate)
        try:
            for end, ids in zip(self._ends, tokens, strict=False):
                start = max(0, begin - self._left_context)
                samples = self._decode(ids, start, min(end + self._right_context, self._frames))
                samples = samples[(begin - start) * self._hop :]
                if tail is not None:
                    samples[:overlap] = tail * (1 - ramp) + samples[:overlap] * ramp
                size = (end - begin) * self._hop
                tail, begin = samples[size : size + overlap], end
                yield samples[:size]
        finally:
            tokens.close()  # `generate` would continue and decode the whole sequence

    def _generate(self, hand_over: Callable[[Any], None]) -> None:
        """Hand over the tokens so far as soon as those of the next piece and its right context are sampled."""
        import torch

        ends = iter(self._ends)
        end = next(ends)

        def after_step(ids: Any, scores: Any, **others: Any) -> Any:
            nonlocal end
            # The start token precedes the first frame.
            if ids.shape[1] - 1 - self._delays[-1] >= min(end + self._right_context, self._frames):
                hand_over(ids)
                end = next(ends)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        self._model.generate(**self._arguments, stopping_criteria=[after_step])

    def _decode(self, ids: Any, start: int, stop: int) -> Samples:
        """Mono samples of the frames from `start` to `stop`."""
        import torch

        frames = torch.stack([row[1 + delay :][start:stop] for row, delay in zip(ids, self._delays, strict=True)])
        with torch.inference_mode():
            channels = [
                self._codec.decode(frames[None, None, channel :: self._channels], audio_scales=[None]).audio_values
                for channel in range(self._channels)
            ]
        samples: Samples = torch.cat(channels, dim=1)[0].mean(dim=0).float().cpu().numpy()
        return samples


def alternating(work: Callable[[Callable[[Any], None]], None]) -> Generator[Any, None, None]:
    """The items that `work` hands over. It runs in a thread of its own, but only while the consumer waits for an item.
    Closing the generator raises `InterruptedError` in `work`."""
    items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    requested = threading.Semaphore(0)
    closed = threading.Event()

    def hand_over(item: Any) -> None:
        items.put((item, None))
        requested.acquire()
        if closed.is_set():
            raise InterruptedError("the request was cancelled")

    def run() -> None:
        try:
            work(hand_over)
        except BaseException as exc:  # raised in the consumer
            items.put((None, exc))
        else:
            items.put((None, StopIteration()))

    thread = threading.Thread(target=run, name="musicgen", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
            requested.release()
    finally:
        closed.set()
        requested.release()
        thread.join()
