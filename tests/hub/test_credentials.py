"""The token and the TLS of callbacks, against receivers on real sockets."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.config import OrchestratorConfig
from rbee_serve.config.secret_file import MAX_TOKEN_BYTES
from rbee_serve.errors import ConfigurationError
from rbee_serve.hub.orchestrator.callback_client import CallbackClient
from tests.hub.callbacks import HEARTBEAT, LOAD_FAILURE, configured, heartbeat, post, post_with
from tests.hub.receivers import OK, Listener, answering, listening, quiet_hive, running

TOKEN = "s3cret-of-the-hive"
REFUSED = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nsecond line\n")
    return path


def authorizations(receiver: Listener) -> list[bytes]:
    return [
        line.partition(b": ")[2]
        for request in receiver.requests
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"authorization")
    ]


def test_the_first_line_of_the_token_file_is_sent_as_the_bearer_token(token_file: Path) -> None:
    with listening(answering(OK)) as receiver:
        assert post(configured(receiver.url, token_file=token_file), f"{receiver.url}/v1/heartbeat").acknowledged
    assert authorizations(receiver) == [f"Bearer {TOKEN}".encode()]


def test_nothing_is_sent_without_a_token_file() -> None:
    with listening(answering(OK)) as receiver:
        post(configured(receiver.url), f"{receiver.url}/v1/heartbeat")
    assert authorizations(receiver) == []


def test_a_load_failure_carries_the_token_only_to_the_origin_of_the_callback_url(token_file: Path) -> None:
    with listening(answering(OK)) as hive, listening(answering(OK)) as other:
        orchestrator = configured(hive.url, token_file=token_file)
        post(orchestrator, f"{hive.url}/errors", LOAD_FAILURE)
        post(orchestrator, f"{other.url}/errors", LOAD_FAILURE)
        post(orchestrator, f"{hive.url.replace('127.0.0.1', 'localhost')}/errors", LOAD_FAILURE)
    assert len(hive.requests) + len(other.requests) == 3
    assert authorizations(hive) == [f"Bearer {TOKEN}".encode()]
    assert authorizations(other) == []


@pytest.mark.parametrize(
    ("callback", "url", "receives"),
    [
        ("http://hive/x", "http://hive:80/y", True),
        ("https://hive/x", "https://HIVE:443/y", True),
        ("http://hive:9200/x", "http://hive:9201/x", False),
        ("https://hive:9200/x", "http://hive:9200/x", False),
        ("http://hive:9200/x", "http://hive.example:9200/x", False),
        ("http://hive:9200/x", "http://hive:9200@other/x", False),
        ("http://hive:9200/x", "http://[::1/x", False),
        ("http://hive:x/x", "http://hive:x/x", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(callback: str, url: str, receives: bool, token_file: Path) -> None:
    orchestrator = OrchestratorConfig(callback_url=callback, token_file=token_file)
    assert orchestrator.receives_token(url) is receives


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_the_token_nowhere(status: int, token_file: Path) -> None:
    with listening(answering(OK)) as other:
        head = f"HTTP/1.1 {status} Go\r\nLocation: {other.url}/v1/heartbeat\r\nContent-Length: 0\r\n\r\n"
        with listening(answering(head.encode())) as hive:
            result = post(configured(hive.url, token_file=token_file), f"{hive.url}/v1/heartbeat")
        assert (result.status, result.acknowledged, hive.connections, other.connections) == (status, False, 1, 0)


def test_a_replaced_token_is_sent_with_the_next_call(token_file: Path) -> None:
    with listening(answering(OK)) as receiver:
        client = CallbackClient(configured(receiver.url, token_file=token_file))
        post_with(client, receiver.url)
        fresh = token_file.with_name("fresh")
        fresh.write_text("new-token")
        fresh.replace(token_file)
        post_with(client, receiver.url)
        token_file.write_text("written in place".replace(" ", "-"))
        post_with(client, receiver.url)
    assert authorizations(receiver) == [f"Bearer {TOKEN}".encode(), b"Bearer new-token", b"Bearer written-in-place"]


def test_while_a_new_token_cannot_be_read_the_last_one_stays(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(answering(OK)) as receiver:
        client = CallbackClient(configured(receiver.url, token_file=token_file))
        post_with(client, receiver.url)
        token_file.write_text("")
        post_with(client, receiver.url, HEARTBEAT, HEARTBEAT)
        token_file.unlink()
        post_with(client, receiver.url)
    assert authorizations(receiver) == [f"Bearer {TOKEN}".encode()] * 4
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        (
            f"orchestrator.token_file: the first line of {token_file} is empty; write a token there; "
            "what it held before stays in use"
        ),
        (
            f"orchestrator.token_file: {token_file} cannot be read: No such file or directory; "
            "what it held before stays in use"
        ),
    ]


def test_without_a_token_that_was_ever_readable_nothing_is_sent(tmp_path: Path) -> None:
    with listening(answering(OK)) as receiver:
        client = CallbackClient(configured(receiver.url, token_file=tmp_path / "token"))
        result = post_with(client, receiver.url, HEARTBEAT, HEARTBEAT)
        assert (result.failure, receiver.connections) == ("not sent", 0)
        assert str(result).startswith("not sent (orchestrator.token_file: ")
        (tmp_path / "token").write_text("here-now")
        assert post_with(client, receiver.url).acknowledged


def test_the_token_is_in_no_log_at_any_level(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for answer in (OK, REFUSED, b"nonsense\r\n\r\n", b""):
        with listening(answering(answer)) as receiver:
            post(configured(receiver.url, token_file=token_file), receiver.url)
    assert caplog.records
    assert TOKEN not in caplog.text


def test_the_token_is_in_no_argument_of_the_application(token_file: Path) -> None:
    orchestrator = configured("http://hive", token_file=token_file)
    orchestrator.check()
    assert TOKEN not in repr(orchestrator) + orchestrator.model_dump_json() + str(vars(orchestrator))


def test_a_refusal_is_one_line_with_the_file_to_look_at_however_many_workers_and_calls(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = b"another"
    hive = quiet_hive(token=lambda: token)
    with running(hive) as url:
        client = CallbackClient(configured(url, token_file=token_file))
        beats = [heartbeat(f"llm-{number}") for number in range(5)]
        for _ in range(4):
            post_with(client, f"{url}/v1/workers/error", *(LOAD_FAILURE for _ in beats))
        assert [record.getMessage() for record in caplog.records if record.name.startswith("rbee_serve")] == [
            (
                f"{url}/v1/workers/error refuses this server with status 401; look at the first line of {token_file} "
                "(orchestrator.token_file); calls are repeated, and this line is not"
            )
        ]
        assert hive.refused == ["INVALID_API_KEY"] * 20
        assert hive.messages == []
        token_file.write_text("also-wrong")
        post_with(client, f"{url}/v1/workers/error", LOAD_FAILURE)
        token_file.write_text("still-wrong")
        post_with(client, f"{url}/v1/workers/error", LOAD_FAILURE)
        token = b"still-wrong"
        assert post_with(client, f"{url}/v1/workers/error", LOAD_FAILURE, LOAD_FAILURE).acknowledged
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("rbee_serve")]
    assert sum("refuses this server" in text for text in texts) == 3
    assert texts[-1] == f"{url}/v1/workers/error accepts this server again"


def test_a_refusal_of_a_token_that_has_been_replaced_meanwhile_is_not_logged(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def talk(connection: Any) -> None:
        token_file.write_text("new-token")
        connection.sendall(REFUSED)
        connection.close()

    with listening(talk) as receiver:
        assert post(configured(receiver.url, token_file=token_file), receiver.url).refused
    assert "refuses" not in caplog.text


def test_a_receiver_that_refuses_one_worker_and_accepts_another_floods_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def talk(connection: Any) -> None:
        connection.sendall(REFUSED if b"llm-1" in receiver.requests[-1] else OK)
        connection.close()

    with listening(talk) as receiver:
        client = CallbackClient(configured(receiver.url))
        post_with(client, f"{receiver.url}/x", *(heartbeat(f"llm-{number % 2}") for number in range(1, 9)))
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("rbee_serve")]
    assert texts == [
        (
            f"{receiver.url}/x refuses this server with status 401; if it wants a token, set orchestrator.token_file; "
            "calls are repeated, and this line is not"
        )
    ]


def test_a_refusal_at_another_origin_is_explained(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(answering(REFUSED.replace(b"401", b"403"))) as other:
        post(configured("http://hive:1", token_file=token_file), other.url)
    assert "with status 403; the token is sent to the origin of orchestrator.callback_url only; " in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the first line of {} is empty; write a token there"),
        (b"  \nsecond", "the first line of {} is empty; write a token there"),
        (b"two words", "the first line of {} has blanks or characters other than ASCII; a header cannot carry them"),
        (b"\xef\xbb\xbf", "the first line of {} is empty; write a token there"),
        (b"a\rb", "the first line of {} has blanks or characters other than ASCII; a header cannot carry them"),
        (b"x" * (MAX_TOKEN_BYTES + 1), f"the first line of {{}} is longer than {MAX_TOKEN_BYTES} bytes"),
    ],
)
def test_a_token_that_cannot_be_sent_is_refused_with_one_sentence(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        configured("http://hive", token_file=path).check()
    assert str(raised.value).startswith(f"orchestrator.token_file: {sentence.format(path)}")


def test_a_token_that_is_no_file_is_refused_and_nothing_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in [
        (tmp_path / "missing", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "pipe", "is not a regular file; name one"),
        (Path("/dev/zero"), "is not a regular file; name one"),
    ]:
        with pytest.raises(ConfigurationError) as raised:
            configured("http://hive", token_file=path).check()
        assert str(raised.value) == f"orchestrator.token_file: {path} {sentence}"


def test_a_url_with_a_password_beside_a_token_is_refused(token_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="callback_url has a user or a password too"):
        configured("http://me:pw@hive", token_file=token_file).check()
    with pytest.raises(ConfigurationError, match="on_error_url has a user or a password too"):
        configured("http://hive", token_file=token_file, on_error_url="http://me@hive/e").check()
    configured("http://hive", token_file=token_file, on_error_url="http://me:pw@other/e").check()
    configured("http://me:pw@hive").check()


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("http://[::1", "http://hive:x", "http://hive:99999", "http://:80"):
        with pytest.raises(ConfigurationError, match=r"^orchestrator.callback_url: cannot be read as a URL"):
            configured(url).check()


@pytest.mark.parametrize("host", ["hive", "10.0.0.7", "[fd00::1]", "localhost.example", "128.0.0.1"])
def test_a_token_over_plain_http_to_another_machine_is_warned_of(host: str, token_file: Path) -> None:
    shown = host.strip("[]")
    (warning,) = configured(f"http://{host}:9200", token_file=token_file).warnings()
    assert warning.startswith(f"orchestrator.token_file: the token is sent to {shown} over plain http, where others ")


@pytest.mark.parametrize("url", ["https://hive", "http://127.0.0.1", "http://127.8.8.8:1", "http://[::1]:9200"])
def test_https_and_loopback_need_no_warning(url: str, token_file: Path) -> None:
    assert configured(url, token_file=token_file).warnings() == []
    assert configured("http://hive").warnings() == []
