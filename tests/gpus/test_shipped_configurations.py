"""Every shipped file for GPUs fits its cards, contexts included, and says under which licences its models are."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rbee_serve.gpu_budget import MAX_SHARE
from rbee_serve.memory_plan.facts_file import read_facts_file
from rbee_serve.memory_plan.plan import PlannedGpu, Verdict
from rbee_serve.supervisor.checks import check_file
from rbee_serve.supervisor.resources import shortage
from tests.gpus.shipped import MODELS, OLD_FILE, ROOT, SHIPPED, plan_of

LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "creativeml-openrail-m": "CreativeML OpenRAIL-M"}
LICENCES |= {"openrail++": "CreativeML OpenRAIL++-M"}
VCPUS = 4
"""Of the usual cloud machine with one GPU of 24 GB."""


@pytest.mark.parametrize("name", SHIPPED)
def test_every_worker_of_a_shipped_file_fits_its_share_with_its_context(name: str) -> None:
    memory = plan_of(ROOT / name, SHIPPED[name])
    verdicts = {planned.label: planned.verdict for gpu in memory.gpus for planned in gpu.workers}
    assert verdicts == dict.fromkeys(verdicts, Verdict.FITS)
    assert (memory.refusals(), memory.warnings()) == ([], [])
    assert all(gpu.workers for gpu in memory.gpus)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_workers_of_a_shipped_file_need_leaves_a_part_of_each_gpu_free(name: str) -> None:
    for gpu in plan_of(ROOT / name, SHIPPED[name]).gpus:
        assert sum(planned.sum_bytes for planned in gpu.workers) <= MAX_SHARE * gpu.size.usable_bytes
        assert sum(planned.share for planned in gpu.workers) <= MAX_SHARE + 1e-9


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_fits_a_machine_with_four_cores(name: str) -> None:
    workers = check_file(ROOT / name).config.workers
    resources = {"CPU": VCPUS, "GPU": len(SHIPPED[name])}
    assert shortage(workers, [{"NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": resources}]) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_each_model_of_a_shipped_file_has_its_licence_beside_it_and_may_be_used_commercially(name: str) -> None:
    facts = {file.model_ref: file for file in map(read_facts_file, sorted(MODELS.glob("*.json")))}
    lines = re.findall(r"model_ref: (\S+) # (.*)", (ROOT / name).read_text())
    assert len(lines) == (ROOT / name).read_text().count("model_ref:")
    for ref, comment in lines:
        assert LICENCES[facts[ref].license.name] in comment.split("; ")
        assert facts[ref].license.commercial


def test_the_file_that_was_shipped_before_is_refused_worker_by_worker() -> None:
    (gpu,) = plan_of(OLD_FILE, ("24GiB",)).gpus
    assert {planned.label: planned.verdict for planned in gpu.workers} == {
        "llm-0": Verdict.EDGE,
        "multimodal-0": Verdict.TOO_LARGE,
        "draw-0": Verdict.EDGE,
        "classify-0": Verdict.TOO_LARGE,
        "embedding-0": Verdict.TOO_LARGE,
        "speech-0": Verdict.TOO_LARGE,
        "transcribe-0": Verdict.EDGE,
    }


def test_the_number_that_is_advised_for_a_worker_of_the_old_file_is_the_smallest_that_fits() -> None:
    (gpu,) = plan_of(OLD_FILE, ("24GiB",)).gpus
    for planned in gpu.workers:
        assert planned.fitting_share is not None
        assert _fits(gpu, planned.label, planned.fitting_share)
        assert not _fits(gpu, planned.label, planned.fitting_share - 0.01)


def _fits(gpu: PlannedGpu, label: str, share: float) -> bool:
    (planned,) = (each for each in gpu.workers if each.label == label)
    worker = planned.worker.model_copy(update={"gpus": share})
    return replace(planned, worker=worker).verdict is Verdict.FITS


@pytest.mark.parametrize("reported", [24_564, 24_576, 23_028, 23_034, 24_576 - 512])
def test_the_file_for_24_gb_fits_every_card_of_that_size(reported: int) -> None:
    """As nvidia-smi reports them: 4090, 3090, A10G, L4, and one that shows a desktop."""
    memory = plan_of(ROOT / "serve_config.gpu.yaml", (f"{reported}MiB",))
    assert (memory.refusals(), memory.warnings()) == ([], [])
