"""What an exception of a model's library shows: which memory ran out, or whether its process can still use the
accelerator.

Every library has its own words for that, and all raise a `RuntimeError` or a class of their own below it, so the text
decides. Nothing here imports a library: classes are recognised by name.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from enum import Enum

from rbee_serve.errors import CudaError, InsufficientResources, InsufficientVram, WorkerError

MAX_CHARACTERS = 500
"""Of one line of an exception: vLLM's about too small a KV cache has 480."""
MAX_CHAIN = 10
"""Exceptions to look at: the one that was raised, what caused it, and so on."""


class EngineFailure(Enum):
    """Kinds of failure, the gravest first."""

    DEVICE_LOST = "device lost"
    """Nothing in this process can use the accelerator any more: NVIDIA's documentation calls for a new process."""
    NO_VRAM = "no VRAM"
    """The accelerator has too little free memory."""
    NO_RAM = "no RAM"
    """The machine has too little free memory."""
    DEVICE_ERROR = "device error"
    """The accelerator refused an operation; others still work."""


ERRORS: dict[EngineFailure, type[WorkerError]] = {
    EngineFailure.DEVICE_LOST: CudaError,
    EngineFailure.NO_VRAM: InsufficientVram,
    EngineFailure.NO_RAM: InsufficientResources,
    EngineFailure.DEVICE_ERROR: CudaError,
}
"""The error that each of them is."""

_NO_RAM = re.compile(r"DefaultCPUAllocator|\bbad_alloc\b|Cannot allocate memory|\bMemoryError\b|HOST_ALLOCATION_FAILED")
"""torch on a CPU, C++, the kernel, Python, cuDNN."""

_NO_VRAM = re.compile(
    r"""
      out[ ]of[ ]memory           # torch (CUDA, HIP, XPU, MPS), the CUDA runtime in CTranslate2, Triton and NCCL, XLA
    | Out_?Of_?Memory             # torch.OutOfMemoryError, CUDA_ERROR_OUT_OF_MEMORY, hipErrorOutOfMemory
    | ErrorMemoryAllocation       # the name of the CUDA runtime's error
    | ALLOC(?:ATION)?_FAILED      # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT, hipBLAS
    | CUSPARSE_STATUS_INSUFFICIENT_RESOURCES
    | NVML_SUCCESS[ ]==           # torch, where the driver hides the numbers for its message about memory that ran out:
                                  # https://github.com/pytorch/pytorch/issues/112377
    | not[ ]enough[ ]GPU[ ]memory # vLLM
    """,
    re.VERBOSE | re.IGNORECASE,
)

_DEVICE = re.compile(
    r"""
      \bCUDA[ ](?:driver[ ])?error | \bCUDA[ ]fail(?:ed|ure) | \bcudaError[A-Z] | \bCUDA_ERROR_
    | \bcu(?:BLAS|DNN|SOLVER|SPARSE|FFT)[ ](?:error|failed) | (?-i:\bCU(?:BLAS|DNN|SOLVER|SPARSE|FFT)_[A-Z_]{4})
    | Triton[ ]Error[ ]\[ | \bNCCL[ ](?:error|failed) | \bHIP[ ]error | \bhipError[A-Z]
    | device-side[ ]assert | illegal[ ]memory[ ]access | uncorrectable[ ](?:ECC|NVLink) | \bXid\b | AcceleratorError
    """,
    re.VERBOSE | re.IGNORECASE,
)

_REFUSED = re.compile(
    r"""
      invalid[ ](?:argument|configuration|device[ ]function|device[ ]ordinal|resource[ ]handle|value)
    | too[ ]many[ ]resources | no[ ]kernel[ ]image | captur | not[ ]supported | unsupported | \bPTX\b
    | NOT_SUPPORTED | INVALID_VALUE | BAD_PARAM | ARCH_MISMATCH
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Errors of the device after which a process can go on. Of all others it is assumed that it cannot: a replica that is
replaced for nothing costs a load, and one that fails every request an outage."""


def engine_failure(error: BaseException) -> EngineFailure | None:
    """The gravest failure of this process that the exception, or one that led to it, shows; None for anything else."""
    found = {_failure_of(each) for each in _chain(error)}
    return next((failure for failure in EngineFailure if failure in found), None)


def engine_failure_in(text: str) -> EngineFailure | None:
    """The failure that the last words of an engine show; None for anything else."""
    if _NO_RAM.search(text):
        return EngineFailure.NO_RAM
    if _NO_VRAM.search(text):
        return EngineFailure.NO_VRAM
    if _DEVICE.search(text):
        return EngineFailure.DEVICE_ERROR if _REFUSED.search(text) else EngineFailure.DEVICE_LOST
    return None


def one_line(error: BaseException) -> str:
    """The exception's class and text in one line of at most `MAX_CHARACTERS`, for the operator."""
    return shortened(f"{type(error).__name__}: {_text(error)}".removesuffix(": "))


def shortened(text: str) -> str:
    """The text in one line of at most `MAX_CHARACTERS`."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"


def _failure_of(error: BaseException) -> EngineFailure | None:
    names = _class_names(error)
    if "OutOfMemoryError" in names:
        return EngineFailure.NO_VRAM
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return EngineFailure.NO_RAM
    if not isinstance(error, RuntimeError):  # the others may quote a request, which must not have a worker replaced
        return None
    name = "AcceleratorError: " if "AcceleratorError" in names else ""
    return engine_failure_in(name + _text(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(MAX_CHAIN):
        if error is None or "RayError" in _class_names(error):  # it quotes what another process raised
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _class_names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a foreign class may raise anything
        return ""
