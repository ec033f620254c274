"""MusicGen's sound in pieces, decoded while its tokens are still being sampled.

The model samples a token of each codebook at a time, and its codec makes samples out of frames: the tokens of all
codebooks that belong together. `generate` blocks until the whole sound is there, so it runs in a thread of its own, by
turns with whoever reads: it stands still while a piece is decoded and while nobody asks for the next one.
"""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.audio.speech_engine import Samples

FIRST_S = 1.0
"""Length of the first piece."""
EVERY_S = 2.0
"""Length of the pieces after it."""
BEFORE_S = 2.0
"""Sound before a piece that is decoded once more with it: the codec remembers what it has decoded."""
AFTER_S = 0.2
"""Sound after a piece that has to be there before it is decoded: the codec looks ahead by some five frames."""


def can_stream(model: Any) -> bool:
    """Whether the codec's sound at one place does not depend on the whole, and the length is known beforehand."""
    codec = model.config.audio_encoder
    norm, ends = getattr(codec, "norm_type", None), model.generation_config.eos_token_id
    return codec.model_type == "encodec" and norm == "weight_norm" and ends is None


class MusicStream:
    """The sound of a MusicGen, `tokens` long. `given` is what `generate` gets besides."""

    def __init__(self, model: Any, tokens: int, given: dict[str, Any]) -> None:
        self._model = model
        settings = copy.deepcopy(model.generation_config)
        settings.update(max_length=None, max_new_tokens=tokens, return_dict_in_generate=False)
        self._given = {**given, "generation_config": settings}
        self._channels = model.config.decoder.audio_channels
        # Codebook k begins k tokens late; those of left and right take turns.
        self._delays = [number // self._channels for number in range(model.config.decoder.num_codebooks)]
        self._frames = tokens - self._delays[-1]
        self._codec = model.audio_encoder
        self._hop = self._codec.config.hop_length
        self._before, self._after, first, every = (
            max(1, round(seconds * self._codec.config.sampling_rate / self._hop))
            for seconds in (BEFORE_S, AFTER_S, FIRST_S, EVERY_S)
        )
        self._ends = [*range(first, self._frames - self._after, every), self._frames]
        self.count = len(self._ends)
        """How many pieces there are."""

    def pieces(self) -> Generator[Samples, None, None]:
        """One continuous signal. Each piece goes over into the next for a frame, as the codec has forgotten some of
        what was before. Raises what `generate` does; closing this ends that at once."""
        import numpy as np

        blend = self._hop  # no piece and no margin is shorter than a frame
        ramp = np.linspace(0, 1, blend, dtype=np.float32)
        continued: Samples | None = None
        begin = 0
        tokens = by_turns(self._generate)
        try:
            for end, ids in zip(self._ends, tokens, strict=False):
                start = max(0, begin - self._before)
                sound = self._decode(ids, start, min(end + self._after, self._frames))
                sound = sound[(begin - start) * self._hop :]
                if continued is not None:
                    sound[:blend] = continued * (1 - ramp) + sound[:blend] * ramp
                size = (end - begin) * self._hop
                continued, begin = sound[size : size + blend], end
                yield sound[:size]
        finally:
            tokens.close()  # `generate` would go on to decode the whole

    def _generate(self, hand_over: Callable[[Any], None]) -> None:
        """Hand over all tokens of one piece and its margin, then of the next."""
        torch = importlib.import_module("torch")
        whole = iter(self._ends)
        wanted = next(whole)

        def sampled(ids: Any, scores: Any, **others: Any) -> Any:
            nonlocal wanted
            # A token to start with comes before the first frame.
            if ids.shape[1] - 1 - self._delays[-1] >= min(wanted + self._after, self._frames):
                hand_over(ids)
                wanted = next(whole)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        self._model.generate(**self._given, stopping_criteria=[sampled])

    def _decode(self, ids: Any, start: int, stop: int) -> Samples:
        """Mono samples of the frames from `start` to `stop`."""
        torch = importlib.import_module("torch")
        frames = torch.stack([row[1 + delay :][start:stop] for row, delay in zip(ids, self._delays, strict=True)])
        with torch.inference_mode():
            sides = [
                self._codec.decode(frames[None, None, side :: self._channels], audio_scales=[None]).audio_values
                for side in range(self._channels)
            ]
        samples: Samples = torch.cat(sides, dim=1)[0].mean(dim=0).float().cpu().numpy()
        return samples


def by_turns(work: Callable[[Callable[[Any], None]], None]) -> Generator[Any, None, None]:
    """What `work` hands over. It runs in a thread of its own, but only while the reader waits for an item. Where the
    reader leaves, `InterruptedError` is raised in `work`."""
    items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    turn = threading.Semaphore(0)
    left = threading.Event()

    def hand_over(item: Any) -> None:
        items.put((item, None))
        turn.acquire()
        if left.is_set():
            raise InterruptedError("nobody waits for this any more")

    def run() -> None:
        try:
            work(hand_over)
        except BaseException as exc:  # it is the reader's
            items.put((None, exc))
        else:
            items.put((None, StopIteration()))

    thread = threading.Thread(target=run, name="by turns", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
            turn.release()
    finally:
        left.set()
        turn.release()
        thread.join()
