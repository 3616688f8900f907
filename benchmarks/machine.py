"""What the machine at hand can do, measured: the limits that the engine's parts are compared with."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Machine:
    """Rates of the machine, with the threads torch uses."""

    matmul_flops: float
    """Floating-point operations a second of the product of two large square matrices in the given precision."""
    read_bytes: float
    """Bytes a second when reading an array much larger than the caches."""
    description: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(dtype: torch.dtype, device: torch.device, *, size: int = 2048, repeats: int = 10) -> Machine:
    """Measure it now; `size` is the matrices' width."""
    a = torch.randn(size, size, device=device).to(dtype)
    matmul = 2 * size**3 / best(lambda: a @ a, device, repeats)
    array = torch.ones(size * size * 8, dtype=torch.int64, device=device)
    read = array.numel() * 8 / best(array.sum, device, max(3, repeats // 2))
    return Machine(matmul, read, describe(dtype, device))


def best(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of some times, in seconds: what the machine can do, not what its neighbours let it."""
    run()
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
