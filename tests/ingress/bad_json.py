"""Tables of bad JSON: bodies for the echo worker, and the field that the response must name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from deployments.echo import EchoRequest

WORKER = "echo-small"
INFER = f"/workers/{WORKER}/v1/inference"
ROOT = "/v1/inference"
CONTENT = "the-prompt-of-this-client"
"""Part of every prompt, and of no response that refuses it."""
GOOD = json.dumps({"prompt": CONTENT, "stream": False}).encode()


def _with_prompt(fields: str) -> bytes:
    return f'{{"prompt":"{CONTENT}","stream":false,{fields}}}'.encode(errors="surrogatepass")


def _bounds() -> Iterator[tuple[str, bytes, str]]:
    """Each bound of the request, exceeded by one."""
    for field, schema in EchoRequest.model_json_schema()["properties"].items():
        for option in [schema, *schema.get("anyOf", ())]:
            wrong: dict[str, Any] = {
                **{name: option[name] + 1 for name in ["maximum"] if name in option},
                **{name: option[name] - 1 for name in ["minimum"] if name in option},
                **{name: option[name] for name in ["exclusiveMinimum"] if name in option},
                **{name: "x" * (option[name] + 1) for name in ["maxLength"] if name in option},
                **{name: "" for name in ["minLength", "pattern"] if name in option},
            }
            for name, value in wrong.items():
                fields = {"prompt": CONTENT, "stream": False, field: value}
                yield f"{field} beyond its {name}", json.dumps(fields).encode(), field


JSON: list[tuple[str, bytes, str]] = [
    # The name, the body, and the field that the response names.
    ("empty", b"", "body"),
    ("blank", b" \n ", "body"),
    ("NUL bytes", bytes(1000), "body"),
    ("truncated", GOOD[:-1], "body"),
    ("text after it", GOOD + b"x", "body"),
    ("two objects", GOOD + GOOD, "body"),
    ("null", b"null", "body"),
    ("a number", b"1", "body"),
    ("a string", f'"{CONTENT}"'.encode(), "body"),
    ("an array", b"[" + GOOD + b"]", "body"),
    ("nested 100,000 deep", b"[" * 100_000, "body"),
    ("nested 100,000 deep, closed", _with_prompt(f'"x":{"[" * 100_000}{"]" * 100_000}'), "body"),
    ("objects 100,000 deep", b'{"a":' * 100_000, "body"),
    ("nested 150 deep", _with_prompt(f'"x":{"[" * 150}{"]" * 150}'), "x"),
    ("100,000 values", _with_prompt(f'"x":[{"0," * 100_000}0]'), "body"),
    ("10,000 unknown fields", _with_prompt(",".join(f'"x{n}":0' for n in range(10_000))), "body"),
    ("an integer of 5,000 digits", _with_prompt(f'"repeat":{"9" * 5000}'), "body"),
    ("an integer over 64 bits", _with_prompt(f'"repeat":{2**70}'), "repeat"),
    ("an unknown integer over 64 bits", _with_prompt(f'"x":{2**70}'), "x"),
    ("a number with an exponent too large", _with_prompt('"delay_s":1e999'), "delay_s"),
    ("NaN", _with_prompt('"delay_s":NaN'), "delay_s"),
    ("Infinity", _with_prompt('"delay_s":Infinity'), "delay_s"),
    ("-Infinity", _with_prompt('"delay_s":-Infinity'), "delay_s"),
    ("UTF-16", GOOD.decode().encode("utf-16"), "body"),
    ("UTF-16 without a byte order mark", GOOD.decode().encode("utf-16-le"), "body"),
    ("UTF-32", GOOD.decode().encode("utf-32"), "body"),
    ("bytes that are not UTF-8", _with_prompt('"job_id":"X"').replace(b"X", b"\xff"), "body"),
    ("a lone surrogate, escaped", _with_prompt(r'"job_id":"\ud800"'), "body"),
    ("a lone surrogate, raw", _with_prompt('"job_id":"\ud800"'), "body"),
    ("a lone surrogate in a name", _with_prompt(r'"\ud800":1'), "body"),
    ("a control character in a string", _with_prompt('"job_id":"a\nb"'), "body"),
    ("a boolean in place of an integer", _with_prompt('"repeat":true'), "repeat"),
    ("a boolean in place of a number", _with_prompt('"delay_s":true'), "delay_s"),
    ("a number in place of a boolean", _with_prompt('"progress":1'), "progress"),
    ("a string in place of an integer", _with_prompt('"repeat":"1"'), "repeat"),
    ("a fraction in place of an integer", _with_prompt('"repeat":1.5'), "repeat"),
    ("null in place of a required field", b'{"prompt":null,"stream":false}', "prompt"),
    ("an object in place of a string", b'{"prompt":{"a":1},"stream":false}', "prompt"),
    ("a field twice, the last one wrong", _with_prompt('"repeat":1,"repeat":0'), "repeat"),
    ("an unknown field", _with_prompt('"temperature":1'), "temperature"),
    ("a misspelt field", _with_prompt('"max_token":1'), "max_token"),
    ("a field in capitals", _with_prompt('"REPEAT":1'), "REPEAT"),
    ("a field without a name", _with_prompt('"":1'), '""'),
    ("a dunder", _with_prompt('"__class__":1'), "__class__"),
    ("a format string as a name", _with_prompt('"{0.__class__}%s":1'), "{0.__class__}%s"),
    ("a line end in the job id", _with_prompt(r'"job_id":"a\n"'), "job_id"),
    ("an unknown choice", _with_prompt('"fail":"no"'), "fail"),
    ("a prompt of 900 kB", json.dumps({"prompt": "x" * 900_000}).encode(), "prompt"),
    ("a prompt of NULs, too long", b'{"prompt":"' + rb"\u0000" * 40_000 + b'"}', "prompt"),
    *_bounds(),
]  # fmt: skip

UNUSUAL_BUT_VALID: list[tuple[str, bytes]] = [
    ("a field twice, the last one right", _with_prompt('"repeat":0,"repeat":1')),
    ("a prompt of control characters", b'{"stream":false,"prompt":"' + rb"\u0000\u001b\u2028" * 100 + b'"}'),
    ("whitespace around it", b" \r\n\t" + GOOD + b" \n"),
    ("a byte order mark", b"\xef\xbb\xbf" + GOOD),
    ("a whole number with a fraction", _with_prompt('"repeat":1.0')),
    ("null for a field that may be left out", _with_prompt('"repeat":null,"progress":null,"delay_s":null')),
]


NOT_JSON = {"NaN", "Infinity", "-Infinity"}
"""Bodies that are no JSON by the standard. The root route, which parses the body to find the worker, refuses the body;
the worker's route refuses the field."""


def at_the_root(body: bytes) -> bytes:
    """The body for the root route, which serves all workers."""
    return body.replace(b"{", b'{"worker":"echo-small",', 1)


BOTH_ROUTES = [(f"{name}, worker's route", INFER, body, field) for name, body, field in JSON] + [
    (f"{name}, root route", ROOT, at_the_root(body), "body" if name in NOT_JSON else field)
    for name, body, field in JSON
]


ROOT_NAMES: list[tuple[str, bytes, int, str]] = [
    # How the worker is named, the body, the status and the code.
    ("no worker named", GOOD, 400, "INVALID_REQUEST"),
    ("null", b'{"worker":null,"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("a number", b'{"worker":1,"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("a boolean as model", b'{"model":true,"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("an array", b'{"worker":["echo-small"],"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("an object", b'{"worker":{"echo-small":1},"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("5,000 digits", b'{"worker":' + b"9" * 5000 + b',"prompt":"a"}', 400, "INVALID_REQUEST"),
    ("an unknown worker", b'{"worker":"nobody","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("empty", b'{"worker":"","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("the hub", b'{"worker":"hub","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("a path", b'{"worker":"../echo-small","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("500 kB", b'{"worker":"' + b"x" * 500_000 + b'","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("worker and model that differ", b'{"worker":"echo-small","model":"x","prompt":"a"}', 404, "WORKER_NOT_FOUND"),
    ("an escaped lone surrogate", rb'{"worker":"\ud800","prompt":"a"}', 400, "INVALID_REQUEST"),
]  # fmt: skip
