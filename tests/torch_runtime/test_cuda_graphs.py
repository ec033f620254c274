"""When a forward pass is captured and replayed; with a recorder that needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.torch_runtime.cuda_graphs import MAX_GRAPHS, RETRY_S, GraphedForward
from tests import devices
from tests.torch_runtime.graph_recorder import Recorder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def scaled(sample: Any, time: Any, *, scale: float = 1.0, more: dict[str, Any] | None = None) -> tuple[Any]:
    return (sample * time * scale + (more or {}).get("bias", 0),)


def ones(side: int = 2) -> Any:
    return torch.ones(side, side)


def test_a_repeated_form_is_captured_and_gives_the_model_s_output(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for time in range(5):
        more = {"bias": torch.tensor(float(time))}
        (found,) = forward(ones(), torch.tensor(time), scale=0.5, more=more)
        assert torch.equal(found, scaled(ones(), time, scale=0.5, more=more)[0])
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_two_alternating_forms_are_both_captured(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for _ in range(3):
        for side in (2, 3):
            assert forward(ones(side), 2.0)[0].shape == (side, side)
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_a_form_that_changes_with_each_step_is_never_captured(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for _ in range(2):
        assert [float(forward(ones(1), float(time))[0]) for time in range(10)] == list(map(float, range(10)))
    assert recorder.recorded == 0


def test_other_weights_and_other_forms_have_their_own_captures(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for weights in (None, "an adapter"):
        forward.weights = weights
        for sample in (ones(), ones().double(), ones()[:, :1].expand(2, 2)):
            for _ in range(2):
                forward(sample, 1)
    assert recorder.recorded == 6
    for _ in range(2):
        forward(ones(), True)  # equals 1, but a model may distinguish them
    assert recorder.recorded == 7


def test_the_most_recently_used_captures_are_kept(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for side in range(1, MAX_GRAPHS + 2):
        for _ in range(2):
            forward(ones(side), 1)
            forward(ones(1), 1)
    assert recorder.recorded == MAX_GRAPHS + 1
    for side in range(3, MAX_GRAPHS + 2):
        forward(ones(side), 1)
    assert recorder.recorded == MAX_GRAPHS + 1
    for _ in range(2):
        forward(ones(2), 1)
    assert recorder.recorded == MAX_GRAPHS + 2


def test_a_failed_capture_runs_the_model_and_is_not_repeated(recorder: Recorder) -> None:
    recorder.fails = RuntimeError("CUDA error: operation not permitted when stream is capturing")
    forward = GraphedForward(scaled, recorder)
    assert [float(forward(ones(1), 3)[0]) for _ in range(4)] == [3.0] * 4
    assert (recorder.recorded, recorder.replayed) == (1, 0)


def test_cleared_captures_are_recorded_anew_but_not_those_that_failed(recorder: Recorder) -> None:
    forward = GraphedForward(scaled, recorder)
    for _ in range(2):
        forward(ones(2), 1)
    recorder.fails = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(2):
        forward(ones(3), 1)
    recorder.fails = None
    forward.clear()
    for side in (2, 3):
        assert forward(ones(side), 1)[0].shape == (side, side)
    assert (recorder.recorded, recorder.replayed) == (3, 2)


def test_a_capture_that_fails_for_want_of_memory_is_tried_again_later(recorder: Recorder) -> None:
    recorder.fails = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    recorder.fails.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    now = 0.0
    forward = GraphedForward(scaled, recorder, clock=lambda: now)
    for side in (1, 2, 3):  # memory is short for all forms
        assert [float(forward(ones(side), 3)[0][0, 0]) for _ in range(4)] == [3.0] * 4
    assert (recorder.recorded, recorder.replayed) == (1, 0)
    now += RETRY_S
    forward(ones(1), 3)
    assert (recorder.recorded, recorder.replayed) == (2, 0)
    recorder.fails = None
    now += RETRY_S
    assert [float(forward(ones(1), 3)[0]) for _ in range(4)] == [3.0] * 4
    assert (recorder.recorded, recorder.replayed) == (3, 4)


def test_unhashable_arguments_run_the_model(recorder: Recorder) -> None:
    forward = GraphedForward(lambda sample, names: sample * len(names), recorder)
    assert [float(forward(ones(1), {"a", "b"})) for _ in range(3)] == [2.0] * 3
    assert recorder.recorded == 0


def test_an_error_of_the_model_is_raised_unchanged(recorder: Recorder) -> None:
    def fails(sample: Any) -> Any:
        raise ValueError("no such size")

    forward = GraphedForward(fails, recorder)
    for _ in range(3):
        with pytest.raises(ValueError, match="no such size"):
            forward(ones())


def test_the_signature_of_forward_is_kept(recorder: Recorder) -> None:
    import inspect

    assert list(inspect.signature(GraphedForward(scaled, recorder)).parameters) == ["sample", "time", "scale", "more"]


@pytest.mark.gpu
@pytest.mark.skipif(not devices.ON_GPU, reason="needs RBEE_SERVE_TEST_DEVICE=cuda")
def test_a_cuda_graph_gives_the_model_s_output_and_a_synchronizing_model_is_not_captured() -> None:
    from deployments.torch_runtime.cuda_graphs import cuda_recorder

    layer = torch.nn.Linear(8, 8).cuda()

    def forward(sample: Any, synchronizes: bool) -> Any:
        return layer(sample) * (sample.sum().item() if synchronizes else 1)

    with torch.inference_mode():
        for synchronizes in (False, True):
            graphed = GraphedForward(forward, cuda_recorder("cuda"))
            for value in range(6):
                sample = torch.full((4, 8), float(value), device="cuda")
                assert torch.allclose(graphed(sample, synchronizes), forward(sample, synchronizes), atol=1e-5)
            assert [replay is None for replay in graphed._replays.values()] == [synchronizes]
