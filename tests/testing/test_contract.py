"""`check_worker_type` accepts types that keep the contract, and names the rule that another one breaks."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Self

import pytest
from pydantic import model_validator

from deployments.echo import SPEC as ECHO
from rbee_serve.errors import ConfigurationError
from rbee_serve.testing import ContractError, check_worker_type
from rbee_serve.worker import (
    End,
    Error,
    InferenceBackend,
    InferenceRequest,
    LoadContext,
    LoadProgress,
    Metrics,
    Output,
    OutputValue,
    StopReason,
    TokenOutput,
    WorkerConfig,
    WorkerSpec,
)
from tests.outside_worker import SPEC as LETTERS
from tests.testing.counting import Counter, CountOutput, CountRequest, async_backend, counting, executing, refuses

END = End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)
METRICS = Metrics({"vram_bytes": 1})


@pytest.mark.parametrize("spec", [ECHO, LETTERS, counting()], ids=lambda spec: spec.name)
def test_a_type_that_keeps_the_contract_passes(spec: WorkerSpec[Any]) -> None:
    check_worker_type(spec)


async def test_the_check_runs_beside_an_event_loop_such_as_that_of_a_notebook() -> None:
    check_worker_type(counting())


def test_it_closes_the_backend_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    check_worker_type(counting())
    assert threading.active_count() == threads


def test_the_model_is_loaded_as_configured() -> None:
    def check(worker: WorkerConfig) -> None:
        raise ConfigurationError("engine.size: unknown key")

    with pytest.raises(ConfigurationError, match=r"engine\.size"):
        check_worker_type(counting(check=check))
    with pytest.raises(ConfigurationError, match="needs a model; give a WorkerConfig with its model_ref"):
        check_worker_type(counting(needs_model=True))
    with pytest.raises(ConfigurationError, match="the module no_such_library is not installed"):
        check_worker_type(counting(modules=("no_such_library",)))
    with pytest.raises(ConfigurationError, match="cannot run on cpu"):
        check_worker_type(counting(accelerators=frozenset({"cuda"})))


class Undescribed(CountRequest):
    nameless: bool = False


class Hidden(CountRequest):
    @model_validator(mode="before")
    @classmethod
    def _check(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("number", 0) > 10_000:
            raise ValueError("too much of everything")
        return values


class Crashing(CountRequest):
    @model_validator(mode="before")
    @classmethod
    def _check(cls, values: Any) -> Any:
        assert values["number"]  # KeyError for {}
        return values


class Clever(CountRequest):
    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.number > 5:
            raise ValueError("number must not be above 5")
        return self


def test_rules_of_the_request() -> None:
    refuses(counting(request=Undescribed, warm_up=Undescribed), "the field nameless of the request has no description")
    refuses(counting(long_request=None), "long_request is not set")
    refuses(counting(warm_up=InferenceRequest), "warm_up() returns a InferenceRequest; it must return a CountRequest")
    sample = CountRequest.model_construct(number=0, _fields_set={"number"})
    refuses(counting(warm_up=lambda: sample), "warm_up() is refused as an invalid request: number: must be at least 1")
    hidden = {"request": Hidden, "warm_up": Hidden, "long_request": lambda: Hidden(number=10_000)}
    refuses(counting(**hidden), "a request whose field no_such_field has a bad value is not refused for that field")
    crashing: dict[str, Any] = {"request": Crashing, "warm_up": lambda: Crashing(number=2)}
    refuses(
        counting(**crashing, long_request=lambda: Crashing(number=10_000)),
        "a validator raised KeyError for a bad request",
    )


def test_rules_of_the_load() -> None:
    def report_wrongly(context: LoadContext) -> Counter:
        context.report(LoadProgress(stage="loading", bytes_done=0.5))  # type: ignore[arg-type]
        return Counter(context)

    refuses(
        counting(load=report_wrongly), "which cannot be sent: Expected `int | null`, got `float` - at `$.bytes_done`"
    )
    refuses(counting(load=lambda context: object()), "load returned a object without execute()")
    for held in (None, 0, -1, 1.5, True):
        load = async_backend(executing, memory_bytes=lambda self, held=held: held)
        refuses(counting(load=load), f"memory_bytes() returned {held!r}; it must be the bytes that the model holds")


def test_a_backend_without_memory_bytes_fails_in_one_sentence_when_it_is_made() -> None:
    class Forgetful(InferenceBackend[CountRequest, CountOutput]):
        async def execute(self, request: CountRequest) -> AsyncGenerator[Any, None]:
            yield END

    with pytest.raises(ConfigurationError, match=r"^the backend .*\.Forgetful must define memory_bytes$"):
        check_worker_type(counting(load=lambda context: Forgetful()))  # type: ignore[abstract]


def test_rules_of_the_stream() -> None:
    output = Output(CountOutput())
    refuses(counting(load=executing(output, METRICS)), "execute ended without an End event")
    refuses(counting(load=executing(END, output)), "execute broke the order of events: Output came where")
    refuses(counting(load=executing(Error(code="X", message="no", retriable=True))), "raise a WorkerError instead")
    refuses(counting(load=executing(output, END)), "the stream has no Metrics event with vram_bytes above 0")
    refuses(counting(load=executing(output, output, METRICS, END)), "count 0 came where count 1 was expected")
    refuses(counting(load=executing(Output(TokenOutput(t="", i=0)), END)), "yielded a TokenOutput, which is not among")
    rate = Metrics({"rate": float("nan"), "vram_bytes": 1})
    refuses(counting(load=executing(output, rate, END)), "the metric rate is nan; metrics are finite numbers")
    unsendable = Output(CountOutput(i=object()))  # type: ignore[arg-type]
    refuses(counting(load=executing(unsendable, END)), "an event that cannot be encoded as JSON")


def test_an_output_whose_index_is_omitted_is_refused() -> None:
    class Shy(OutputValue, frozen=True, kw_only=True, omit_defaults=True, tag="shy"):
        i: int = 0

    refuses(counting(outputs=(Shy,), load=executing(Output(Shy()), END)), "has no i; drop omit_defaults")


def test_an_error_of_the_backend_is_reported_with_its_cause() -> None:
    async def execute(self: Any, request: Any) -> AsyncGenerator[Any, None]:
        raise KeyError("weights")
        yield END

    with pytest.raises(ContractError, match="execute raised KeyError on the warm-up request: 'weights'") as caught:
        check_worker_type(counting(load=async_backend(execute)))
    assert isinstance(caught.value.__cause__, KeyError)

    async def returns(self: Any, request: Any) -> list[Any]:
        return []

    refuses(counting(load=async_backend(returns)), "execute must be an async generator")


def test_rules_of_the_result() -> None:
    class Clashing(CountOutput, frozen=True, kw_only=True, tag="clashing"):
        @classmethod
        def join(cls, values: Any) -> dict[str, Any]:
            return {"model": 1}

    clashing = counting(outputs=(Clashing,), load=executing(Output(Clashing()), METRICS, END))
    refuses(clashing, "join returned the field model, which every result has already")

    def encode(request: Any, result: Any) -> Any:
        raise ValueError("no encoder")

    refuses(counting(encode_result=encode), "the result cannot be encoded: ValueError: no encoder")


def test_every_part_of_the_check_uses_the_options_of_the_worker() -> None:
    seen: list[LoadContext] = []

    def load(context: LoadContext) -> Counter:
        seen.append(context)
        return Counter(context)

    worker = WorkerConfig(id="c", type="count", model_ref="file:/m", engine={"size": 1}, hang_timeout_s=77)
    peers: dict[str, Any] = {"audio": lambda fields: None}
    check_worker_type(replace(counting(), load=load), worker, peers=peers)
    assert (seen[0].worker, seen[0].peers, seen[0].device.accelerator) == (worker, peers, "cpu")
