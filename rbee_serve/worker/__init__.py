"""The public API of worker types: everything that an author imports.

    from rbee_serve.worker import BlockingBackend, InferenceRequest, OutputValue, WorkerSpec

Semantic versioning covers the names in `__all__` and what their docstrings promise: parameters, attributes, defaults,
errors, and the JSON of the outputs and events. A change that breaks a worker type is announced in CHANGELOG.md under
*Breaking* and raises the major version (before 1.0 the minor version). The same holds for `rbee_serve.testing`,
`rbee_serve.client`, the rbee wire protocol and the keys of `serve_config.yaml`.

Everything else may change in any release: submodules, private names, texts of messages and log lines, the engines in
`deployments`, and `rbee_serve.ingress`, `replica`, `hub`, `supervisor` and `transport`. `WorkerSpec` and `LoadContext`
may get new fields with a default, so pass their arguments by name.

A name is imported when it is first used, so this package itself imports no model library, no Ray and no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbee_serve.config import WorkerConfig, parse_engine
    from rbee_serve.content import FileField
    from rbee_serve.errors import (
        ConfigurationError,
        CudaError,
        InferenceTimeout,
        InsufficientResources,
        InsufficientVram,
        InternalError,
        InvalidRequest,
        RequestTooLong,
        Violation,
        WorkerError,
        WorkerLost,
        WorkerUnhealthy,
    )
    from rbee_serve.events import End, Error, Event, Metrics, Narration, Output, Progress, Started, StopReason
    from rbee_serve.memory_plan.model_facts import ModelFacts
    from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
    from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
    from rbee_serve.model_files.resolve import ModelFiles
    from rbee_serve.model_files.resolve import check_local as check_local_model
    from rbee_serve.model_files.resolve import prepare as prepare_model
    from rbee_serve.model_files.resolve import resolve as resolve_model
    from rbee_serve.outputs import (
        AudioChunkOutput,
        EmbeddingOutput,
        ImageOutput,
        Label,
        LabelOutput,
        OutputValue,
        RankOutput,
        RecordingOutput,
        SegmentOutput,
        TimedWord,
        TokenOutput,
    )
    from rbee_serve.request import InferenceRequest
    from rbee_serve.result import EncodedResult, Result
    from rbee_serve.state import LoadProgress, MemorySource
    from rbee_serve.validation.violations import violated
    from rbee_serve.worker.backend import InferenceBackend
    from rbee_serve.worker.batched_backend import BatchedBackend
    from rbee_serve.worker.batching import Batcher
    from rbee_serve.worker.blocking_backend import BlockingBackend
    from rbee_serve.worker.cuda_memory import cuda_tree_bytes
    from rbee_serve.worker.device import usable_cores
    from rbee_serve.worker.engine_thread import EngineThread, Sink
    from rbee_serve.worker.memory import MemoryGauge, memory_gauge, process_tree_bytes
    from rbee_serve.worker.narration import narrate
    from rbee_serve.worker.options import EngineOptions
    from rbee_serve.worker.request_clock import RequestClock
    from rbee_serve.worker.spec import Device, LoadContext, Peer, WorkerSpec
    from rbee_serve.worker.watchdog import Watchdog

__all__ = [
    "AudioChunkOutput",
    "BatchedBackend",
    "Batcher",
    "BlockingBackend",
    "ConfigurationError",
    "CudaError",
    "Device",
    "EmbeddingOutput",
    "EncodedResult",
    "End",
    "EngineOptions",
    "EngineThread",
    "Error",
    "Event",
    "Figure",
    "FileField",
    "ImageOutput",
    "InferenceBackend",
    "InferenceRequest",
    "InferenceTimeout",
    "InsufficientResources",
    "InsufficientVram",
    "InternalError",
    "InvalidRequest",
    "Label",
    "LabelOutput",
    "LoadContext",
    "LoadProgress",
    "MemoryGauge",
    "MemoryNeeds",
    "MemorySource",
    "Metrics",
    "ModelFacts",
    "ModelFiles",
    "Narration",
    "Output",
    "OutputValue",
    "Peer",
    "Progress",
    "RankOutput",
    "RecordingOutput",
    "RequestClock",
    "RequestTooLong",
    "Result",
    "SegmentOutput",
    "Sink",
    "Started",
    "StopReason",
    "TimedWord",
    "TokenOutput",
    "Violation",
    "Watchdog",
    "WorkerConfig",
    "WorkerError",
    "WorkerLost",
    "WorkerSpec",
    "WorkerUnhealthy",
    "check_local_model",
    "cuda_tree_bytes",
    "memory_gauge",
    "narrate",
    "parse_engine",
    "prepare_model",
    "process_tree_bytes",
    "require_memory",
    "resolve_model",
    "usable_cores",
    "violated",
    "weights_memory_bytes",
]

_NAMES = {
    "config": "WorkerConfig parse_engine",
    "content": "FileField",
    "errors": "ConfigurationError CudaError InferenceTimeout InsufficientResources InsufficientVram InternalError "
    "InvalidRequest RequestTooLong Violation WorkerError WorkerLost WorkerUnhealthy",
    "events": "End Error Event Metrics Narration Output Progress Started StopReason",
    "memory_plan.model_facts": "ModelFacts",
    "memory_plan.needs": "Figure MemoryNeeds",
    "model_files.memory_check": "require_memory weights_memory_bytes",
    "model_files.resolve": "ModelFiles check_local_model=check_local prepare_model=prepare resolve_model=resolve",
    "outputs": "AudioChunkOutput EmbeddingOutput ImageOutput Label LabelOutput OutputValue RankOutput RecordingOutput "
    "SegmentOutput TimedWord TokenOutput",
    "request": "InferenceRequest",
    "result": "EncodedResult Result",
    "state": "LoadProgress MemorySource",
    "validation.violations": "violated",
    "worker.backend": "InferenceBackend",
    "worker.batched_backend": "BatchedBackend",
    "worker.batching": "Batcher",
    "worker.request_clock": "RequestClock",
    "worker.cuda_memory": "cuda_tree_bytes",
    "worker.device": "usable_cores",
    "worker.engine_thread": "EngineThread Sink",
    "worker.memory": "MemoryGauge memory_gauge process_tree_bytes",
    "worker.narration": "narrate",
    "worker.options": "EngineOptions",
    "worker.blocking_backend": "BlockingBackend",
    "worker.spec": "Device LoadContext Peer WorkerSpec",
    "worker.watchdog": "Watchdog",
}
"""The names by module; `public=attribute` where they differ."""

_TARGETS = {
    public: (f"rbee_serve.{module}", attribute or public)
    for module, names in _NAMES.items()
    for public, _, attribute in (name.partition("=") for name in names.split())
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562). An import at module level would be a cycle: the modules of
    this package, and those that use one of them, import this file first."""
    if name not in _TARGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _TARGETS[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
