"""Train the models of digits anew: about an hour on two cores.

python -m demo_models [classifier] [painter] [reader]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from demo_models import classifier, painter, reader

FOLDER = Path(__file__).parent
REACHED = FOLDER / "reached.json"
"""How good each is, and how long it took, in seconds."""


def main() -> None:
    """Train what is named, or everything."""
    folders = {name: FOLDER / f"digits_{name}" for name in ("classifier", "painter", "reader")}
    makers = {
        "classifier": lambda: classifier.make(folders["classifier"]),
        "painter": lambda: painter.make(folders["painter"], folders["classifier"]),
        "reader": lambda: reader.make(folders["reader"]),
    }
    for name in sys.argv[1:] or makers:
        began = time.monotonic()
        reached = makers[name]()
        all_of_them = json.loads(REACHED.read_text()) if REACHED.exists() else {}
        all_of_them[name] = {**reached, "seconds": round(time.monotonic() - began)}
        REACHED.write_text(json.dumps(all_of_them, indent=2) + "\n")
        print(name, all_of_them[name], flush=True)


if __name__ == "__main__":
    main()
