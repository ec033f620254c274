"""What the exceptions of libraries show: texts as the libraries raise them."""

from __future__ import annotations

import errno

import pytest

from rbee_serve.errors import CudaError, InvalidRequest
from rbee_serve.worker.engine_failure import MAX_CHARACTERS, EngineFailure, engine_failure, engine_failure_in, one_line

NO_VRAM = [
    # torch
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.2 GiB is free.",
    "HIP out of memory. Tried to allocate 2.00 GiB.",
    "XPU out of memory. Tried to allocate 2.00 GiB.",
    "MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 1.00 KB, max allowed: 9.07 GB).",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseSpMM`",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":995, please report a bug',
    # CTranslate2
    "CUDA failed with error out of memory",
    "cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED",
    "cuDNN failed with status CUDNN_STATUS_ALLOC_FAILED",
    # NCCL, Triton, XLA, the CUDA and the HIP runtime by their own names
    "NCCL error: unhandled cuda error\nncclUnhandledCudaError\nLast error:\nCuda failure 2 'out of memory'",
    "Triton Error [CUDA]: out of memory",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "hipErrorOutOfMemory",
    # what vLLM makes of one of a worker's
    "Worker failed with error 'CUDA out of memory. Tried to allocate 2.00 GiB.', please check the stack trace above",
]
NO_RAM = [
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes",
    "std::bad_alloc",
    "unable to mmap 16384 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
]
DEVICE_LOST = [
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported.",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: misaligned address",
    "CUDA error: unknown error",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "CUDA failed with error an illegal memory access was encountered",
    "cuBLAS failed with status CUBLAS_STATUS_EXECUTION_FAILED",
    "cudaErrorIllegalAddress: an illegal memory access was encountered",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "HIP error: unspecified launch failure",
]
DEVICE_ERROR = [
    "CUDA error: invalid argument",
    "CUDA error: invalid configuration argument",
    "CUDA error: too many resources requested for launch",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: operation not permitted when stream is capturing",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
]
NOTHING = [
    "Library libcublas.so.12 is not found or cannot be loaded",
    "cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.",
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes may help.",
    "mat1 and mat2 shapes cannot be multiplied (1x3 and 4x5)",
    "",
]
TEXTS = [
    *((text, EngineFailure.NO_VRAM) for text in NO_VRAM),
    *((text, EngineFailure.NO_RAM) for text in NO_RAM),
    *((text, EngineFailure.DEVICE_LOST) for text in DEVICE_LOST),
    *((text, EngineFailure.DEVICE_ERROR) for text in DEVICE_ERROR),
    *((text, None) for text in NOTHING),
]


class OutOfMemoryError(RuntimeError):
    """As torch's is called, which no replica should import to recognise it."""


class AcceleratorError(RuntimeError):
    """As torch's is called."""


class TemplateError(Exception):
    """As that of Jinja's is called, whose text a request may choose."""


class RayError(Exception):
    """As Ray's is called: it quotes the traceback of another process."""


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_a_failure_is_recognised_by_its_text(text: str, expected: EngineFailure | None) -> None:
    assert engine_failure(RuntimeError(text)) is expected
    assert engine_failure_in(f"RuntimeError: {text}") is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("Allocation on device"), EngineFailure.NO_VRAM),
        (AcceleratorError("an error without a name"), EngineFailure.DEVICE_LOST),
        (AcceleratorError("CUDA error: invalid argument"), EngineFailure.DEVICE_ERROR),
        (MemoryError(), EngineFailure.NO_RAM),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), EngineFailure.NO_RAM),
        (OSError(errno.ENOENT, "no such file: out of memory"), None),
        (ValueError("the prompt 'CUDA error: out of memory' is too long"), None),
        (TemplateError("the role 'CUDA error: device-side assert triggered' is unknown"), None),
        (RayError("CUDA error: device-side assert triggered"), None),
    ],
)
def test_a_failure_is_recognised_by_its_class_and_not_by_a_quoted_text(
    error: Exception, expected: EngineFailure | None
) -> None:
    assert engine_failure(error) is expected


def test_torch_s_own_classes_are_recognised() -> None:
    torch = pytest.importorskip("torch")
    assert engine_failure(torch.OutOfMemoryError()) is EngineFailure.NO_VRAM
    assert engine_failure(torch.AcceleratorError("CUDA error: device-side assert")) is EngineFailure.DEVICE_LOST


def test_a_failure_is_found_behind_what_it_led_to() -> None:
    lost, refused = RuntimeError(DEVICE_LOST[0]), RuntimeError("CUDA error: operation failed during capture")
    memory = OutOfMemoryError()
    refused.__context__ = memory
    assert engine_failure(refused) is EngineFailure.NO_VRAM
    wrapped = CudaError("the accelerator failed")
    wrapped.__cause__ = lost
    assert engine_failure(wrapped) is EngineFailure.DEVICE_LOST
    memory.__context__ = lost
    assert engine_failure(refused) is EngineFailure.DEVICE_LOST
    lost.__context__ = refused  # a circle
    assert engine_failure(refused) is EngineFailure.DEVICE_LOST
    alone = InvalidRequest("a smaller one")
    alone.__context__, alone.__suppress_context__ = memory, True
    assert engine_failure(alone) is None


def test_an_exception_is_one_line_of_limited_length() -> None:
    class Silent(RuntimeError):
        def __str__(self) -> str:
            raise RuntimeError

    assert one_line(ValueError("a\n  b\n")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(Silent()) == "Silent"
    assert engine_failure(Silent()) is None
    long = one_line(ValueError("a " * 1000))
    assert (len(long), long[-1]) == (MAX_CHARACTERS, "…")
