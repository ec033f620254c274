"""The vision worker's task `embed` on tiny random models, without Ray."""

from __future__ import annotations

import base64
import io
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.vision import embed
from deployments.vision.embed import EmbedRequest
from rbee_serve.errors import ConfigurationError
from rbee_serve.events import Output, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from tests import devices
from tests.vision.encoders import FILES, context, events

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),  # for the warnings of torch and transformers
]


async def test_a_vector_is_that_of_the_library_alone(folders: dict[str, Path], pipelines: dict[str, Any]) -> None:
    import torch

    for kind in ("clip", "siglip"):
        bare = pipelines[kind]
        with closing(embed.load(context(folders[kind]))) as backend:
            for file in FILES.values():
                with Image.open(io.BytesIO(file)) as image, torch.inference_mode():
                    upright = ImageOps.exif_transpose(image).convert("RGB")
                    inputs = bare.image_processor(upright, return_tensors="pt").to(devices.NAME)
                    expected = bare.model.get_image_features(**inputs)
                row = expected.pooler_output[0].cpu().numpy()
                work = ordered(Started.now("job", "model"), backend.execute(EmbedRequest(image=file)))
                result = (await collect(work, embed.SPEC.outputs)).output
                assert result["dim"] == len(row)
                assert result["embeddings"][0] == pytest.approx(row / np.linalg.norm(row), abs=1e-5)
                raw = next(e.value for e in await events(backend, file, normalize=False, encoding="base64")
                           if isinstance(e, Output))  # fmt: skip
                assert struct.unpack(f"<{raw.dim}f", base64.b64decode(raw.embedding)) == pytest.approx(row, rel=1e-4)


def test_a_classifier_cannot_embed(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="embed is for CLIP and SigLIP; this model classifies"):
        embed.load(context(folders["vit"]))
