"""The images of the documents, from responses of a running server.

    .venv/bin/python -m scripts.readme_images http://127.0.0.1:8000

`docs/becoming_a_seven.png` is a strip of the previews of an image; `docs/streams.svg` a terminal with shortened streams
of all worker types.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.text import Text

from rbee_serve.client import Client
from rbee_serve.events import Output
from rbee_serve.outputs import ImageOutput

DOCS = Path(__file__).resolve().parents[1] / "docs"
SEVEN: dict[str, Any] = {"prompt": "a handwritten seven", "seed": 3, "steps": 20}
TILE = 96
"""Width and height of a preview in the strip, in pixels."""
MAX_EVENTS = 8
"""Events of a stream in the terminal, beside its end and the first one of each type."""


def main(url: str) -> None:
    """Create both."""
    DOCS.mkdir(exist_ok=True)
    with Client(url, outputs=[ImageOutput]) as client:
        client.wait_until_ready()
        with client.stream("draw-0", **SEVEN, preview_every=3) as events:
            files = [event.value.patch for event in events if isinstance(event, Output)]
        speech = client.infer_file("speech-0", prompt="This is a seven.", format="mp3").data
    _strip(files).save(DOCS / "becoming_a_seven.png")
    console = Console(record=True, width=116, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    seven = {"image": ("seven.png", files[-1], "image/png")}
    for arguments, worker, request in (
        ('-d \'{"prompt":"The capital of France is","max_tokens":4}\'', "llm-0",
         {"json": {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}}),
        ('-d \'{"input":["a cat","two dogs"]}\'', "embedding-0",
         {"json": {"input": ["a cat", "two dogs"]}}),
        ('-d \'{"prompt":"a handwritten seven","steps":3}\'', "draw-0",
         {"json": {"prompt": "a handwritten seven", "steps": 3, "seed": 3}}),
        ("-F image=@seven.png -F top_k=2", "classify-0", {"files": seven, "data": {"top_k": "2"}}),
        ('-F image=@seven.png -F "prompt=Which digit is this?" -F \'modalities=["text","audio"]\'', "multimodal-0",
         {"files": seven, "data": {"prompt": "Which digit is this?", "modalities": '["text","audio"]',
                                   "temperature": "0"}}),
        ("-F audio=@seven.mp3", "transcribe-0", {"files": {"audio": ("seven.mp3", speech, "audio/mpeg")}}),
    ):  # fmt: skip
        console.print(f"[bold green]$[/] curl -N localhost:8000/workers/{worker}/v1/inference {arguments}")
        response = httpx.post(f"{url}/workers/{worker}/v1/inference", timeout=60, **request)
        for line in _lines(response.text):
            console.print(line, overflow="ellipsis", no_wrap=True)
        console.print()
    console.save_svg(str(DOCS / "streams.svg"), title="rbee-serve")


def _strip(files: list[bytes]) -> Image.Image:
    """The images side by side, enlarged to tiles without interpolation."""
    strip = Image.new("RGB", ((TILE + 4) * len(files) - 4, TILE), "white")
    for index, file in enumerate(files):
        tile = Image.open(io.BytesIO(file)).resize((TILE, TILE), Image.Resampling.NEAREST)
        strip.paste(tile, (index * (TILE + 4), 0))
    return strip


def _lines(stream: str) -> Iterator[Text]:
    """The characteristic frames of a stream, coloured by type."""
    colours = {
        "token": "cyan",
        "embedding": "cyan",
        "audio": "magenta",
        "image": "yellow",
        "labels": "green",
        "segment": "blue",
    }
    frames = [frame for frame in stream.split("\n\n") if frame and '"type":"narration"' not in frame]
    seen: set[str] = set()
    for number, frame in enumerate(frames):
        kind = json.loads(frame[6:]).get("type", "") if frame.startswith("data: {") else ""
        if number < MAX_EVENTS or kind in ("end", "") or kind not in seen:
            seen.add(kind)
            yield Text(frame, style=colours.get(kind, "grey62"))


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
