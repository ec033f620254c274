"""Finds the facts of a configuration's models: on this machine, then on the Hub."""

from __future__ import annotations

from collections.abc import Mapping

from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.memory_plan.hub_facts import HubUnreachable, cached_facts, hub_facts
from rbee_serve.memory_plan.local_facts import facts_of_path
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.model_files.model_ref import HubModel, parse_model_ref
from rbee_serve.model_files.resolve import resolve


class FactsFinder:
    """Looks each model up once. `given` are facts by `model_ref` that come first, such as those of files.

    A local model is read from its folder, one of the Hub from the cache, else by small calls of the Hub. If the Hub is
    not reached once it is not called again.
    """

    def __init__(self, given: Mapping[str, ModelFacts] | None = None, *, endpoint: str | None = None) -> None:
        self._found: dict[str, ModelFacts] = dict(given or {})
        self._endpoint = endpoint
        self._hub_is_reached = True
        self.missing: dict[str, str] = {}
        """A sentence for each model of which nothing is known, by `model_ref`."""

    def find(self, ref: str) -> ModelFacts:
        """The facts; without weights and configuration where nothing is known, which `missing` explains."""
        if ref not in self._found:
            self._found[ref] = self._look_up(ref)
        return self._found[ref]

    def _look_up(self, ref: str) -> ModelFacts:
        try:
            model = parse_model_ref(ref)
            if not isinstance(model, HubModel):
                return facts_of_path(ref, resolve(ref, lambda progress: None).path)
            found = cached_facts(model, ref) or self._from_hub(model, ref)
        except (ConfigurationError, WorkerError) as exc:
            self.missing[ref] = f"{ref}: {str(exc).removeprefix('model_ref: ')}"
            return ModelFacts(ref, "unknown")
        except ImportError:
            self.missing[ref] = f"{ref}: huggingface_hub is not installed; pip install 'rbee-serve[cpu]' or [gpu]"
            return ModelFacts(ref, "unknown")
        return found or ModelFacts(ref, "unknown")

    def _from_hub(self, model: HubModel, ref: str) -> ModelFacts | None:
        remedy = "run this where the Hub is reached, or name a folder of facts with --facts"
        if self._hub_is_reached:
            try:
                if (found := hub_facts(model, ref, endpoint=self._endpoint)) is not None:
                    if not found.weights:
                        self.missing[ref] = f"{ref}: its weights are counted when its files are on this machine only"
                    return found
                self.missing[ref] = (
                    f"{ref}: the Hub does not give this model; check the name, or log in for a gated one"
                )
                return None
            except HubUnreachable:
                self._hub_is_reached = False
        self.missing[ref] = (
            f"{ref} is not in the cache and the Hub was not reached, so its weights and KV cache are unknown; {remedy}"
        )
        return None
