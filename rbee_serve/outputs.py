"""The outputs of the modalities: the values of `Output` events.

An output is a frozen msgspec struct whose tag is its wire name (`"type": "token"`). `join` combines a
list of them where a client requests one result instead of a stream. A new modality adds a class, here or in its own
package: nothing else in the library depends on the list.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from rbee_serve.outputs_json import number_text

_encoder = msgspec.json.Encoder()


class OutputValue(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output"):
    """Base of all outputs. A subclass ends with the field `i: int`, which counts the outputs of one stream from 0."""

    @classmethod
    def wire_name(cls) -> str:
        """The `type` of this output's events on the wire."""
        return str(cls.__struct_config__.tag)

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The outputs of one request combined, as the fields of a JSON result."""
        return {"outputs": [msgspec.to_builtins(value) for value in values]}

    def to_json(self) -> bytes:
        """The event as JSON."""
        return _encoder.encode(self)


class TokenOutput(OutputValue, frozen=True, kw_only=True, tag="token"):
    """One generated token. `t` is its text; it may be empty (part of a character, or text held back for a stop
    sequence). The joined `t` of a stream is the generated text."""

    t: str
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The whole text."""
        return {"text": "".join(value.t for value in values)}


class EmbeddingOutput(OutputValue, frozen=True, kw_only=True, tag="embedding"):
    """The vector of one text: `dim` numbers, or the base64 of as many float32 in little-endian order where the request
    asks for that."""

    embedding: list[float] | str
    dim: int
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The vectors, in the order of the texts."""
        return {"embeddings": [value.embedding for value in values], "dim": values[0].dim if values else 0}


class RankOutput(OutputValue, frozen=True, kw_only=True, omit_defaults=True, tag="rank"):
    """One document of a ranking by relevance, the best first. `index` is its position in the request,
    `relevance_score` the score of the model: for most models a probability."""

    index: int
    relevance_score: float
    document: str | None = None
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """All documents, in that order."""
        return {"results": [_plain(value) for value in values]}


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A class that an image may belong to, and the score of the model."""

    label: str
    score: float


class LabelOutput(OutputValue, frozen=True, kw_only=True, tag="labels"):
    """The most likely labels of one image, in the order of their scores."""

    labels: tuple[Label, ...]
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The labels."""
        return {"labels": [msgspec.to_builtins(label) for value in values for label in value.labels]}


class AudioChunkOutput(OutputValue, frozen=True, kw_only=True, omit_defaults=True, tag="audio"):
    """A chunk of one continuous signal, mono, of `sample_rate` samples per second.

    `samples` are little-endian bytes: float32 in [-1, 1], or the format of `encoding`. On the wire they are base64
    where there is an `encoding`, else a list of numbers, which is what a client decodes.
    """

    samples: bytes | list[float]
    sample_rate: int
    encoding: Literal["f32le", "pcm_s16le"] | None = None
    i: int

    def to_json(self) -> bytes:
        """See `OutputValue.to_json`."""
        return _encoder.encode({"type": "audio", **self.join([self]), "i": self.i})

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The whole signal, in the format of its chunks."""
        if not values:
            return {"samples": []}
        rate, encoding = values[0].sample_rate, values[0].encoding
        data = b"".join(_bytes(value.samples) for value in values)
        if encoding is None:
            return {"samples": msgspec.Raw(number_text(data)), "sample_rate": rate}
        return {"samples": data, "sample_rate": rate, "encoding": encoding}


class ImageOutput(OutputValue, frozen=True, kw_only=True, omit_defaults=True, tag="image"):
    """An image: `patch` is a file in that `format`, as base64 on the wire.

    With `preview` it is a small preview of the next image, after `step` steps. Images are generated one after another,
    and `i` counts previews too.
    """

    patch: bytes
    format: Literal["png", "jpeg", "webp"]
    preview: bool = False
    step: int | None = None
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The finished images."""
        finished = [value for value in values if not value.preview]
        if not finished:
            return {"images": []}
        return {"images": [value.patch for value in finished], "format": finished[0].format}


class TimedWord(msgspec.Struct, frozen=True, kw_only=True):
    """A spoken word with its start and end in seconds. `probability` is the confidence of the model."""

    t: str
    start: float
    end: float
    probability: float | None = None


class SegmentOutput(OutputValue, frozen=True, kw_only=True, omit_defaults=True, tag="segment"):
    """The text spoken from `start` to `end`, in seconds of the recording. The joined `t` of a stream is the text;
    `words` are present where the request asks for them."""

    t: str
    start: float
    end: float
    words: tuple[TimedWord, ...] = ()
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The whole text, and its segments."""
        return {
            "text": "".join(segment.t for segment in values).strip(),
            "segments": [_plain(segment) for segment in values],
        }


class RecordingOutput(OutputValue, frozen=True, kw_only=True, tag="recording"):
    """What is known of a recording before it is transcribed: its `duration` in seconds, and the spoken language (ISO
    639-1) with its probability."""

    duration: float
    language: str
    language_probability: float
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        """The fields of the first one."""
        return {name: value for name, value in _plain(values[0]).items() if name != "i"} if values else {}


def _plain(value: OutputValue) -> dict[str, Any]:
    return {name: field for name, field in msgspec.to_builtins(value).items() if name != "type"}


def _bytes(samples: bytes | list[float]) -> bytes:
    return samples if isinstance(samples, bytes) else array("f", samples).tobytes()
