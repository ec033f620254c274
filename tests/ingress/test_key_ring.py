"""Tokens that are replaced while the server runs."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.config.auth import AuthConfig
from rbee_serve.ingress import keys as keys_module
from rbee_serve.ingress.keys import KeyRing
from tests.ingress.application import keys_in


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def name_of(ring: KeyRing, token: str) -> str | None:
    key = ring.find(token.encode())
    return key.name if key else None


def ring_in(folder: Path, clock: Clock, *names: str) -> KeyRing:
    return KeyRing(AuthConfig.model_validate(keys_in(folder, **{name: {} for name in names})), clock)


def replace(file: Path, text: str) -> None:
    """As editors and secret managers do."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize("write", [replace, Path.write_text], ids=["replaced", "written"])
def test_a_new_token_is_valid_at_once_and_the_old_one_no_more(tmp_path: Path, write: Any) -> None:
    clock = Clock()
    ring = ring_in(tmp_path, clock, "a", "b")
    before = ring.find(b"a-token")
    write(tmp_path / "a", "a-tokex\n")  # of the same length
    clock.now += 0.1
    assert ring.find(b"a-tokex") is before  # with what it has used so far
    assert name_of(ring, "a-token") is None
    assert name_of(ring, "b-token") == "b"


def test_an_old_token_is_refused_a_second_later_though_nobody_uses_the_new_one(tmp_path: Path) -> None:
    clock = Clock()
    ring = ring_in(tmp_path, clock, "a")
    replace(tmp_path / "a", "new")
    clock.now += 1.0
    assert name_of(ring, "a-token") is None


def test_a_secret_of_kubernetes_is_followed_through_its_links(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "token").write_text(f"token-{version}")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "token").symlink_to("..data/token")
    clock = Clock()
    ring = KeyRing(AuthConfig.model_validate({"token_file": tmp_path / "token"}), clock)
    assert name_of(ring, "token-1") == "token_file"
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    clock.now += 1
    assert (name_of(ring, "token-1"), name_of(ring, "token-2")) == (None, "token_file")


@pytest.mark.parametrize("broken", ["", "\n", None], ids=["empty", "an empty line", "removed"])
def test_while_a_file_cannot_be_used_its_last_token_stays_valid(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ring = ring_in(tmp_path, clock, "a", "b")
    if broken is None:
        (tmp_path / "a").unlink()
    else:
        (tmp_path / "a").write_text(broken)
    replace(tmp_path / "b", "b-new")
    for _ in range(5):
        clock.now += 1
        assert (name_of(ring, "a-token"), name_of(ring, "b-new"), name_of(ring, "")) == ("a", "b", None)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("the key a keeps its last token: ")
    replace(tmp_path / "a", "a-new")
    clock.now += 1
    assert (name_of(ring, "a-token"), name_of(ring, "a-new")) == (None, "a")


def test_two_keys_never_get_the_same_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ring = ring_in(tmp_path, clock, "a", "b")
    replace(tmp_path / "b", "a-token")
    clock.now += 1
    assert (name_of(ring, "a-token"), name_of(ring, "b-token")) == ("a", "b")
    assert "two of them have the same one" in caplog.text
    replace(tmp_path / "a", "b-token")  # now they have changed places
    clock.now += 1
    assert (name_of(ring, "a-token"), name_of(ring, "b-token")) == ("b", "a")


def test_a_file_that_does_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    auth = keys_in(tmp_path, a={})
    long_ago = time.time() - 100
    os.utime(tmp_path / "a", (long_ago, long_ago))
    ring = KeyRing(AuthConfig.model_validate(auth), clock)
    monkeypatch.setattr(keys_module, "read_token", None)
    for _ in range(10):
        clock.now += 1
        assert name_of(ring, "a-token") == "a"


def test_windows_line_ends_and_byte_order_marks_are_no_part_of_a_token(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf a-token \r\nmore\r\n")
    ring = KeyRing(AuthConfig.model_validate({"token_file": tmp_path / "a"}))
    assert name_of(ring, "a-token") == "token_file"
