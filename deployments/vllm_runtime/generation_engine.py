"""Text generation on `AsyncLLM`: engine input in, the text of each new token out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deployments.vllm_runtime.engine_options import check_names, engine_options, vllm_options, with_defaults
from deployments.vllm_runtime.mapping import fold_seed, split_text
from deployments.vllm_runtime.running_engine import RunningEngine
from deployments.vllm_runtime.stop_hold_back import patch_stop_hold_back
from deployments.vllm_runtime.vllm_engine import EngineStatistics, start_engine
from rbee_serve.request import new_id
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog

SAMPLING_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""Options that go to vLLM by their own names; where one is left out, the model's `generation_config.json` decides."""

EngineInput = dict[str, Any]
"""A prompt as vLLM takes it; `prompt_token_ids` are its tokens, those of media included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """How to generate. `sampling` has some of `SAMPLING_OPTIONS`; `lora` is the name of an adapter."""

    max_tokens: int
    min_tokens: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    seed: int | None = None
    ignore_eos: bool = False
    lora: str | None = None


class Finish(NamedTuple):
    """Why a generation ended. `stop_match` is the stop sequence that matched (text), or the end token's id."""

    reason: Literal["stop", "length", "abort", "error"] | None
    stop_match: str | int | None = None


class GenerationEngine:
    """A running engine and the model's tokenizer. `loras` are vLLM's adapter requests by name."""

    def __init__(
        self, engine: RunningEngine, watchdog: Watchdog, statistics: EngineStatistics, loras: dict[str, Any]
    ) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        self._engine = engine
        self.llm = llm = engine.llm
        """The `AsyncLLM`, for `media_renderer`."""
        self.tokenizer = llm.get_tokenizer()
        """The model's tokenizer, of transformers."""
        self.context_tokens = int(llm.model_config.max_model_len)
        """Tokens of prompt and output together, at most."""
        self.loras = tuple(sorted(loras))
        """The names of the adapters."""
        self._watchdog, self._statistics, self._lora_requests = watchdog, statistics, loras
        self._vocabulary = len(self.tokenizer)
        self._defaults = {
            name: value
            for name, value in llm.model_config.get_diff_sampling_param().items()
            if name in SAMPLING_OPTIONS
        }
        self._sampling_params, self._delta = SamplingParams, RequestOutputKind.DELTA
        self._tokens_input, self._engine_dead = tokens_input, EngineDeadError

    def input_of_tokens(self, tokens: list[int]) -> EngineInput:
        """The engine input of a prompt without media."""
        return self._tokens_input(tokens)  # type: ignore[no-any-return,unused-ignore]

    async def generate(
        self, engine_input: EngineInput, params: GenerationParams
    ) -> AsyncGenerator[list[str] | Finish, None]:
        """For each output of the engine the texts of its new tokens, one of each token; `Finish` comes last. Closing it
        aborts the generation. Raises `RunningEngine.error` when the engine has died."""
        lora = None if params.lora is None else self._lora_requests[params.lora]
        outputs = self.llm.generate(engine_input, self._sampling(params), new_id("generation"), lora_request=lora)
        last: Any = None
        try:
            async with aclosing(outputs), aclosing(self._watchdog.watch(outputs)) as steps:
                async for output in steps:
                    last = output.outputs[0]
                    yield self._texts(last.text, last.token_ids)
        except self._engine_dead as exc:
            raise self._engine.error() from exc
        yield Finish(last.finish_reason, last.stop_reason)

    def _sampling(self, params: GenerationParams) -> Any:
        return self._sampling_params(
            **(self._defaults | params.sampling),
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop=list(params.stop) or None,
            seed=None if params.seed is None else fold_seed(params.seed),
            ignore_eos=params.ignore_eos,
            output_kind=self._delta,
        )

    def _texts(self, text: str, token_ids: Sequence[int]) -> list[str]:
        if len(token_ids) == 1:
            return [text]
        lengths = [
            len(self.tokenizer.decode([token])) if token < self._vocabulary else 0 for token in token_ids
        ]  # a model may have more tokens than its tokenizer
        return split_text(text, lengths) if lengths else []

    @property
    def alive(self) -> bool:
        """False once the engine's process is dead."""
        return self._engine.alive

    def why_dead(self) -> str:
        """See `RunningEngine.why_dead`."""
        return self._engine.why_dead()

    @property
    def requests(self) -> int:
        """Requests that run or wait in the scheduler, at its last step."""
        return self._statistics.requests

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.close()


def check_option_names(context: LoadContext) -> None:
    """Raise `ConfigurationError` on options that the installed vLLM does not have; to be called before the model's
    files are fetched. Imports vLLM, which takes seconds."""
    check_names(vllm_options(context.worker).for_vllm(), context.worker.id)


def load_engine(context: LoadContext, model: Path, **defaults: Any) -> GenerationEngine:
    """Start the engine on a model's files. `defaults` are options of vLLM that the configuration may replace
    (`with_defaults`). Raises what `start_engine` raises."""
    adapters = vllm_options(context.worker).lora_modules
    options = with_defaults(engine_options(context, model), defaults)
    if adapters:
        options.setdefault("enable_lora", True)
    statistics = EngineStatistics(context.watchdog)
    engine = start_engine(context, options, statistics)
    patch_stop_hold_back()
    from vllm.lora.request import LoRARequest

    loras = {name: LoRARequest(name, number, path) for number, (name, path) in enumerate(adapters.items(), start=1)}
    return GenerationEngine(engine, context.watchdog, statistics, loras)
