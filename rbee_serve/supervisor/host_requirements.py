"""What this machine must have for the workers of a configuration, beyond Ray's resources: the right build of PyTorch,
a driver and GPUs that it supports, a compiler for vLLM, shared memory. Reads files and the driver, and imports no
model library.

A worker type of another package may use libraries that are built for another CUDA, so only the built-in types are
looked at, where they load a model.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rbee_serve import nvml
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.checks import CheckedConfig
from rbee_serve.torch_build import TorchBuild, cpu_build, driver_fault, gpu_build, installed_build
from rbee_serve.worker.registry import import_path, load_spec

MIN_CAPABILITY = (7, 5)
"""Turing, the oldest generation of GPUs for which CUDA 13 compiles: PyTorch and vLLM have no kernels for older ones."""
MIN_SHM_BYTES = 10**9
"""Of `/dev/shm` for a worker with several GPUs: vLLM's message queue takes 240 MiB of it, and NCCL's buffers some more
where GPUs cannot reach each other's memory. Docker's default is 64 MB."""
SHM = "/dev/shm"  # noqa: S108  (its size is read)


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine has. `driver` is the newest CUDA that its NVIDIA driver supports, None without a driver;
    `gpus` are name and compute capability of each visible GPU; `shm_bytes` is the size of `/dev/shm`."""

    build: TorchBuild | None = None
    driver: tuple[int, int] | None = None
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()
    c_compiler: bool = True
    python_header: bool = True
    shm_bytes: int | None = None


def this_host(environ: Mapping[str, str] = os.environ) -> Host:
    """The machine of this process."""
    driver = shm_bytes = None
    with suppress(nvml.NvmlUnavailable):
        driver = nvml.driver_cuda_version()
    with suppress(OSError):
        shm = os.statvfs(SHM)
        shm_bytes = shm.f_blocks * shm.f_frsize
    return Host(
        build=installed_build(),
        driver=driver,
        gpus=tuple(_visible_gpus(environ)),
        c_compiler=_has_c_compiler(environ),
        python_header=(Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        shm_bytes=shm_bytes,
    )


def require_host(checked: CheckedConfig, host: Host) -> None:
    """Raise `ConfigurationError` with a line for each thing that this machine lacks."""
    if faults := host_faults(checked, host):
        raise ConfigurationError("\n".join(faults))


def host_faults(checked: CheckedConfig, host: Host) -> list[str]:
    """One sentence for each thing that this machine lacks and without which workers cannot start."""
    return list(_faults(checked, host))


def host_warnings(checked: CheckedConfig, host: Host) -> list[str]:
    """One sentence for each thing that may make workers fail, depending on the GPUs."""
    several = [worker for worker in checked.config.workers if worker.gpus > 1]
    if not several or host.shm_bytes is None or host.shm_bytes >= MIN_SHM_BYTES:
        return []
    sizes = f"has {host.shm_bytes / 1e6:.0f} MB instead of {MIN_SHM_BYTES / 1e6:.0f}"
    remedy = "start the container with --shm-size=8g or --ipc=host"
    return [f"{_ids(several)}: the GPUs of a worker exchange data through {SHM}, which {sizes}; {remedy}"]


def _faults(checked: CheckedConfig, host: Host) -> Iterator[str]:
    built_in = {name.partition("/")[0] for name in checked.worker_types}
    models = [worker for worker in checked.config.workers if worker.model_ref is not None and worker.type in built_in]
    on_gpu = [worker for worker in models if worker.backend == "cuda" or worker.gpus]
    on_vllm = [worker for worker in models if _needs_vllm(worker, checked)]
    if on_gpu:
        for fault in (*_build_faults(host), *_old_gpus(host)):
            yield f"{_ids(on_gpu)}: {fault}"
    if host.driver is not None and (compiling := [worker for worker in on_vllm if worker in on_gpu]):
        for fault in _compiler_faults(host):
            yield f"{_ids(compiling)}: {fault}"
    on_cpu = [worker for worker in on_vllm if worker not in on_gpu]
    if on_cpu and host.build is not None and host.build.cuda is not None:
        yield f"{_ids(on_cpu)}: {gpu_build('vLLM')}"


def _build_faults(host: Host) -> Iterator[str]:
    if host.build is None:  # the load reports which module is missing
        return
    if host.build.cuda is None:
        yield cpu_build("PyTorch")
    elif host.driver is not None and (fault := driver_fault(host.build.cuda, host.driver)):
        yield fault


def _old_gpus(host: Host) -> Iterator[str]:
    for name, capability in sorted(set(host.gpus)):
        if capability < MIN_CAPABILITY:
            yield (
                f"{name} has compute capability {capability[0]}.{capability[1]}, and PyTorch needs "
                f"{MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer; use another GPU, and leave this one out of "
                "CUDA_VISIBLE_DEVICES"
            )


def _compiler_faults(host: Host) -> Iterator[str]:
    """Triton, without which vLLM does not run on a GPU, compiles its access to the driver when it is first used."""
    headers = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    if not host.c_compiler:
        yield "vLLM needs a C compiler at run time, gcc or clang in PATH, or that in CC; apt install gcc libc6-dev"
    if not host.python_header:
        yield f"vLLM needs Python.h at run time, the headers of this Python; apt install {headers}"


def _visible_gpus(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, int]]]:
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    with suppress(nvml.NvmlUnavailable):
        gpus = nvml.gpus() if chosen is None else [nvml.gpu(gpu_id.strip()) for gpu_id in chosen.split(",") if gpu_id]
        for gpu in gpus:
            yield gpu.name, gpu.compute_capability()


def _has_c_compiler(environ: Mapping[str, str]) -> bool:
    names = [environ["CC"]] if "CC" in environ else ["gcc", "clang"]
    return any(shutil.which(name, path=environ.get("PATH", os.defpath)) for name in names)


def _needs_vllm(worker: WorkerConfig, checked: CheckedConfig) -> bool:
    modules = load_spec(import_path(worker.type, worker.task, checked.worker_types)).modules
    return "vllm" in modules or worker.engine.get("name") == "vllm"


def _ids(workers: Sequence[WorkerConfig]) -> str:
    return ", ".join(worker.id for worker in workers)
