"""What may come back for a request. Everything else is a fault."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from benchmarks.soak.http import Conduct, Response
from benchmarks.soak.samples import Sample
from rbee_serve.events import End, Error, Output, from_json
from rbee_serve.grammar import GrammarError, StreamGrammar, check_stream
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.sse import MARKER, Decoder

LEAKED = re.compile(rb"0x[0-9a-f]{6}|Traceback|/secret/|site-packages|\.py\b")
"""What no error may contain."""
REFUSED = "INSUFFICIENT_RESOURCES"
"""The code of a queue that is full. It is honest at any time, and a fault of the soak if it is frequent."""
TIMEOUT = "INFERENCE_TIMEOUT"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The name of what happened, and the fault if it should not have."""

    name: str
    fault: str | None = None
    grammar: bool = False
    """Whether the fault is one of the order of events."""


def judge(
    sample: Sample,
    conduct: Conduct,
    response: Response,
    disturbed: bool,
    cut: bool,
    outputs: tuple[type[OutputValue], ...],
) -> Outcome:
    """`disturbed`: a process that the request needs was killed or hung meanwhile. `cut`: it may be the ingress."""
    if conduct.leaves and not response.complete:
        return _begun(response, outputs)
    if response.timed_out:
        return Outcome("unanswered", "no response within the deadline and 10 s")
    if response.status == 0 and (0 in sample.statuses or cut):
        return Outcome("connection closed")
    if response.status == 0:
        return Outcome("no response", f"the connection closed without a response ({response.error})")
    if not response.complete:
        return Outcome("cut", None if cut else f"the response broke off ({response.error}) after {_end(response)}")
    if response.status != 200:
        return _refusal(sample, response, disturbed)
    if 200 not in sample.statuses:
        return Outcome("accepted", f"{sample.kind} was accepted: {_end(response)}")
    return _stream(sample, response, disturbed, outputs) if response.is_stream else _document(response)


def _begun(response: Response, outputs: tuple[type[OutputValue], ...]) -> Outcome:
    """A response that the client left: what came must be the beginning of a stream."""
    if response.is_stream and response.status == 200:
        grammar = StreamGrammar()
        try:
            for data in Decoder().feed(bytes(response.body)):
                if data == MARKER:
                    grammar.accept_done()
                elif (event := from_json(data, *outputs)) is not None:
                    grammar.accept(event)
        except (GrammarError, ValueError) as exc:
            return Outcome("left", str(exc), grammar=True)
    return Outcome("left")


def _refusal(sample: Sample, response: Response, disturbed: bool) -> Outcome:
    try:
        error = json.loads(response.body)
        code, retriable = str(error["code"]), bool(error["retriable"])
    except (ValueError, KeyError, TypeError):
        if response.status in sample.statuses and not sample.is_good:  # the HTTP server refuses what is no HTTP
            return Outcome(f"{response.status}")
        return Outcome(f"{response.status}", f"{response.status} without code: {_end(response)}")
    name = f"{response.status} {code}"
    if LEAKED.search(response.body):
        return Outcome(name, f"an error with internals: {_end(response)}")
    if response.status == 503 and retriable and "retry-after" not in response.headers:
        return Outcome(name, f"{code} without Retry-After")
    if response.status in sample.statuses or _allowed(sample, code, retriable, disturbed):
        return Outcome(name)
    return Outcome(name, f"{response.status} for {sample.kind}: {_end(response)}")


def _allowed(sample: Sample, code: str, retriable: bool, disturbed: bool) -> bool:
    """Whether an error is a right answer to a valid request."""
    return retriable and (
        code == REFUSED or (code == TIMEOUT and sample.deadline_s < 2) or (disturbed and code != "INTERNAL")
    )


def _stream(sample: Sample, response: Response, disturbed: bool, outputs: tuple[type[OutputValue], ...]) -> Outcome:
    try:
        events = check_stream(bytes(response.body), *outputs)
    except GrammarError as exc:
        return Outcome("stream", str(exc), grammar=True)
    last = events[-1]
    if isinstance(last, Error):
        name = f"error event {last.code}"
        if LEAKED.search(last.message.encode()):
            return Outcome(name, f"an error with internals: {last.message}")
        allowed = sample.may_fail or _allowed(sample, last.code, last.retriable, disturbed)
        return Outcome(name, None if allowed else f"{last.code} for {sample.kind}: {last.message}")
    assert isinstance(last, End)
    tokens = "".join(
        event.value.t for event in events if isinstance(event, Output) and isinstance(event.value, TokenOutput)
    )
    if sample.text is not None and tokens != sample.text:
        return Outcome("stream", f"{len(tokens)} characters of {len(sample.text)} came back, or others")
    return Outcome("stream, end")


def _document(response: Response) -> Outcome:
    if response.headers.get("content-type", "").startswith("application/json"):
        try:
            document = json.loads(response.body)
        except ValueError:
            return Outcome("document", f"no JSON: {_end(response)}")
        if not isinstance(document, dict):
            return Outcome("document", f"no object: {_end(response)}")
    elif not response.body:
        return Outcome("document", "an empty file")
    return Outcome("document")


def _end(response: Response) -> str:
    return repr(bytes(response.body[-300:]))
