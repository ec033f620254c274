"""What a speech model of transformers needs of its GPU."""

from __future__ import annotations

from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.transformer_config import dimension

MIB = 1024**2

SENTENCE_S = 20
"""Seconds of audio of the longest sentence that the engine speaks at once."""

LAYERS_AT_ONCE = 5
"""Tensors of the last, widest layer of VITS's decoder that exist at once. With 20 s of speech the formula gives 205 MB
for mms-tts-eng; 206 MB were traced."""

OTHER_BYTES = 512 * MIB
"""An estimate for other speech models."""


def speech_needs(dtype: str | None, facts: ModelFacts) -> MemoryNeeds:
    """The weights, and one sentence of the longest length."""
    return MemoryNeeds(weights=facts.weights_figure(dtype), activations=_activations(facts))


def _activations(facts: ModelFacts) -> Figure:
    config = facts.config()
    channels, rate = dimension(config, ("upsample_initial_channel",)), dimension(config, ("sampling_rate",))
    stages = config.get("upsample_rates")
    if config.get("model_type") != "vits" or channels is None or rate is None or not isinstance(stages, list):
        return Figure(OTHER_BYTES, "an estimate for speech models", assumed=True)
    last = channels >> len(stages)
    count = LAYERS_AT_ONCE * SENTENCE_S * rate * max(1, last) * 4
    return facts.config_figure(count, f"{SENTENCE_S} s of speech")
