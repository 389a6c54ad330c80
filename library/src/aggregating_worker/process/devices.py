"""The GPUs of this machine and its processor's cores, shared out among the processes of the task."""

import os
import sys
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables by which libraries of numbers choose how many threads they start; each would start one a core."""


def gpus() -> list[str]:
    """Return the GPUs that a process may see, by the names that ``CUDA_VISIBLE_DEVICES`` has for them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    found = (file.name.removeprefix("nvidia") for file in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((number for number in found if number.isdecimal()), key=int)


def uses_gpu() -> bool:
    """Whether CUDA is in use in this process, as far as PyTorch knows: it is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def shares(processes: int) -> list[dict[str, str]]:
    """Return what the environment of each of ``processes`` says of the GPUs and the cores that are its own."""
    devices, environments = gpus(), []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for number in range(processes):
        share: dict[str, str] = {}
        if processes > 1:
            share = {name: str(max(1, cores // processes)) for name in THREADS if name not in os.environ}
        if len(devices) > 1:
            mine = devices[number::processes] or [devices[number % len(devices)]]
            share["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        environments.append(share)
    return environments
