"""What is traced in a process of Ray."""

import subprocess
import sys

from tests.executed_lines import ROOT


def test_the_library_is_traced_from_its_first_import_and_nothing_else() -> None:
    program = """
from tests import executed_lines
executed_lines.trace()
import rbee_serve.correlation
lines = executed_lines.stop(None)
rbee_serve.correlation.accept("an-id")
print(lines == executed_lines.stop(None), *lines)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    still_the_same, *paths = done.stdout.split()
    assert still_the_same == "True", done.stderr
    assert "rbee_serve/correlation.py" in paths
    assert all(path.startswith("rbee_serve/") for path in paths)
