"""Engine modules return domain values: they import no request, no event, no output and no `WorkerSpec`."""

from __future__ import annotations

import pytest

from tests.test_import_rules import ALL_IMPORTS, none_of, within

ENGINE_MODULES = [
    "deployments.vllm_runtime",
    "deployments.vision.diffusers_engine",
    "deployments.vision.diffusers_loader",
    "deployments.vision.generation_params",
    "deployments.vision.image_encoders",
    "deployments.vision.image_model",
    "deployments.vision.latent_preview",
    "deployments.vision.vision_options",
]
WORKER_NAMES = [
    "rbee_serve.content",
    "rbee_serve.events",
    "rbee_serve.outputs",
    "rbee_serve.request.InferenceRequest",
    "rbee_serve.worker.backend",
    "rbee_serve.worker.request_clock",
    "rbee_serve.worker.narration",
    "rbee_serve.worker.spec.WorkerSpec",
    "deployments.llm",
    "deployments.multimodal",
    "deployments.vision.classify",
    "deployments.vision.embed",
    "deployments.vision.generate",
    "deployments.vision.image_field",
    "deployments.vision.vision_backend",
]


@pytest.mark.parametrize("engine", ENGINE_MODULES)
def test_an_engine_module_imports_nothing_of_a_worker(engine: str) -> None:
    found = [entry for entry in ALL_IMPORTS if within(entry.importer, engine)]
    assert found
    none_of([entry for entry in found if any(within(entry.imported, name) for name in WORKER_NAMES)])
