"""The built-in worker types. A type of another package needs no line here: `type: "package.module:ATTRIBUTE"` in the
configuration names it. A type with several tasks has a line for each, `type/task`; the first is the default."""

WORKER_TYPES: dict[str, str] = {
    "audio/transcribe": "deployments.audio.transcribe:SPEC",
    "audio/generate": "deployments.audio.generate:SPEC",
    "echo": "deployments.echo:SPEC",
    "embedding": "deployments.embedding.embedding_worker:SPEC",
    "llm": "deployments.llm.llm_worker:SPEC",
    "multimodal": "deployments.multimodal.multimodal_worker:SPEC",
    "reranker": "deployments.reranker:SPEC",
    "vision/classify": "deployments.vision.classify:SPEC",
    "vision/embed": "deployments.vision.embed:SPEC",
    "vision/generate": "deployments.vision.generate:SPEC",
}
