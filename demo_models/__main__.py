"""Train the digit models: about an hour on two cores.

python -m demo_models [classifier] [painter] [reader]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demo_models import classifier, painter, reader

FOLDER = Path(__file__).parent
REACHED = FOLDER / "result.json"
"""The quality of each model, and the seconds of its training."""


def main() -> None:
    """Train the named models, or all."""
    folders = {name: FOLDER / f"digits_{name}" for name in ("classifier", "painter", "reader")}
    trainers = {
        "classifier": lambda: classifier.make(folders["classifier"]),
        "painter": lambda: painter.make(folders["painter"], folders["classifier"]),
        "reader": lambda: reader.make(folders["reader"]),
    }
    for name in sys.argv[1:] or trainers:
        began = time.monotonic()
        result = trainers[name]()
        results = json.loads(REACHED.read_text()) if REACHED.exists() else {}
        results[name] = {**result, "seconds": round(time.monotonic() - began)}
        REACHED.write_text(json.dumps(results, indent=2) + "\n")
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
