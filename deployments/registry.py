"""The worker types that come with rbee-serve. A new one is a module beside this one and a line here, or no line at
all: `type: "package.module:ATTRIBUTE"` in the configuration names a worker that lives anywhere. A type with several
tasks has a line for each, `type/task`; the first is the default."""

WORKER_TYPES: dict[str, str] = {
    "audio/transcribe": "deployments.audio_transcribe:SPEC",
    "audio/generate": "deployments.audio_generate:SPEC",
    "echo": "deployments.echo:SPEC",
    "embedding": "deployments.embedding:SPEC",
    "llm": "deployments.llm:SPEC",
    "multimodal": "deployments.multimodal:SPEC",
    "reranker": "deployments.reranker:SPEC",
    "vision/classify": "deployments.vision_classify:SPEC",
    "vision/embed": "deployments.vision_embed:SPEC",
    "vision/generate": "deployments.vision_generate:SPEC",
}
