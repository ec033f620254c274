"""The worker types that come with rbee-serve. A new one is a module beside this one and a line here, or no line at
all: `type: "package.module:ATTRIBUTE"` in the configuration names a worker that lives anywhere. A type with several
tasks has a line for each, `type/task`; the first is the default."""

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
