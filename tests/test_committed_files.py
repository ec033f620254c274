"""No committed file names a path of one machine or the address of a package registry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# In pieces, so that this file does not find itself.
PRIVATE = (
    r"(?<![\w.])/(?:home|Users|root|work|mnt|opt)/" + r"[A-Za-z_.][\w.-]*",
    r"(?:index|find-links)[-_a-z]*\s*=\s*" + r"[a-z]+://",
    r"(?:pypi|pythonhosted|pytorch)\." + r"org",
    r"(?:artifactory|nexus|pypi)" + r"\.[a-z]+\.",
)


def test_no_committed_file_names_a_private_path_or_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    private = re.compile("|".join(PRIVATE))
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights, images
        found += [
            f"{name}:{number}: {match[0]}" for number, line in enumerate(lines, 1) if (match := private.search(line))
        ]
    assert not found, "\n".join(found)
