"""The public names of the library: adding or dropping one is a decision, and shows here."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import TypeVar

import pytest

PUBLIC = {
    "rbee_serve.client": {
        "AsyncClient", "Client", "Health", "Readiness", "ReplicaInfo", "Unauthorized", "WorkerDescription",
        "WorkerInfo", "WorkerReadiness",
    },
    "rbee_serve.errors": {
        "BodyTimeout", "ConfigurationError", "CudaError", "HeaderTimeout", "HeadersTooLarge", "HttpVersionNotSupported",
        "InferenceTimeout", "InsufficientResources", "InsufficientVram", "InternalError", "InvalidRequest",
        "MethodNotAllowed",
        "MisdirectedRequest", "OriginNotAllowed", "PayloadTooLarge", "RateLimited", "RequestTooLong", "RouteNotFound",
        "UnsupportedMediaType", "Violation", "WorkerError", "WorkerLoading", "WorkerLost", "WorkerNotFound",
        "WorkerStopping", "WorkerUnhealthy",
    },
    "rbee_serve.errors_json": {"error_from_code", "error_from_json"},
    "rbee_serve.events": {
        "EVENT_TYPES", "End", "Error", "Event", "Metrics", "NOTES", "Narration", "Output", "Progress", "Started",
        "StopReason", "from_json", "to_json",
    },
    "rbee_serve.grammar": {"GrammarError", "StreamGrammar", "check_stream"},
    "rbee_serve.validation.limits": {"with_limits"},
    "rbee_serve.outputs": {
        "AudioChunkOutput", "EmbeddingOutput", "ImageOutput", "Label", "LabelOutput", "OutputValue", "RankOutput",
        "RecordingOutput", "SegmentOutput", "TimedWord", "TokenOutput",
    },
    "rbee_serve.request": {"InferenceRequest", "new_id"},
    "rbee_serve.sse": {
        "DONE", "Decoder", "EventTooLarge", "KEEP_ALIVE", "MARKER", "MAX_EVENT_BYTES", "MEDIA_TYPE", "frame",
    },
    "rbee_serve.testing": {"ContractError", "check_worker_type"},
    "rbee_serve.validation.parse": {"parse", "parse_object", "violated", "with_limits"},
    "rbee_serve.worker": {
        "AudioChunkOutput", "BatchedBackend", "Batcher", "BlockingBackend", "ConfigurationError", "CudaError",
        "Device", "EmbeddingOutput", "EncodedResult", "End", "EngineOptions", "EngineThread", "Error", "Event",
        "Figure", "FileField", "ImageOutput", "InferenceBackend", "InferenceRequest", "InferenceTimeout",
        "InsufficientResources", "InsufficientVram", "InternalError", "InvalidRequest", "Label", "LabelOutput",
        "LoadContext", "LoadProgress", "MemoryGauge", "MemoryNeeds", "MemorySource", "Metrics", "ModelFacts",
        "ModelFiles", "Narration", "Output", "OutputValue", "Peer", "Progress", "RankOutput", "RecordingOutput",
        "RequestClock", "RequestTooLong", "Result", "SegmentOutput", "Sink", "Started", "StopReason", "TimedWord",
        "TokenOutput", "Violation", "Watchdog", "WorkerConfig", "WorkerError", "WorkerLost", "WorkerSpec",
        "WorkerUnhealthy", "check_local_model", "cuda_tree_bytes", "memory_gauge", "narrate", "parse_engine",
        "prepare_model", "process_tree_bytes", "require_memory", "resolve_model", "usable_cores", "violated",
        "weights_memory_bytes",
    },
}  # fmt: skip


def public_names(module_name: str) -> set[str]:
    """What `__all__` lists; without one, what the module's own statements bind, less underscores and type variables."""
    module = importlib.import_module(module_name)
    if listed := getattr(module, "__all__", None):
        return set(listed)
    names: set[str] = set()
    for statement in ast.parse(inspect.getsource(module)).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_") and not isinstance(getattr(module, name), TypeVar)}


@pytest.mark.parametrize("module_name", PUBLIC)
def test_public_names_are_pinned(module_name: str) -> None:
    assert public_names(module_name) == PUBLIC[module_name]
    module = importlib.import_module(module_name)
    assert all(hasattr(module, name) for name in PUBLIC[module_name])
