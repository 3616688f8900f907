"""What a device can do: published figures of GPUs, or what `measure.py` finds of the machine at hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """What a kind of pass takes beside its products."""

    layer_seconds: float
    """A layer and pass, whatever the number of tokens: its small operations are started one by one."""
    byte_seconds: float
    """A byte of the activations (`Shape.activation_bytes`) of each token and layer: norms, rotary positions,
    attention, casts, and what smaller products lose against large ones."""


@dataclass(frozen=True)
class Hardware:
    """Rates of one device, in seconds and bytes."""

    flops: float
    """Floating-point operations a second in products of large matrices."""
    read: float
    """Bytes a second of weights and caches that decoding reads."""
    merge: float
    """Bytes a second of weights into which an adapter is merged."""
    memory: float
    """Bytes."""
    resident: float
    """Bytes that are taken before there is a model: libraries, the driver's context."""
    kernels: float
    """Bytes of compiled products that are kept."""
    decode: Pass
    score: Pass
    """A forward pass without gradients."""
    update: Pass
    """Forward and backward."""
    link: float = 1.25e9
    """Bytes a second between devices; else those of 10-gigabit Ethernet."""
    number: int = 2
    """Bytes of a weight: 2 in bf16, 4 in fp32."""


MFU = 0.4
"""Share of a GPU's peak that training gets: 38 to 43 % in "The Llama 3 herd of models" (2024), table 4. Assumed, not
measured here; what a pass takes beside its products is in it."""
READ_SHARE = 0.8
"""Share of its bandwidth that reading gets. Assumed."""
KERNEL_SECONDS = 5e-6
"""To start an operation from Python. Assumed, as are the operations of a layer: 30 forward, twice as many backward."""
OPERATIONS = 30
CONTEXT_BYTES = 1e9
"""Of CUDA and its libraries. Assumed."""


def gpu(tflops: float, gigabytes: float, bandwidth: float, link: float) -> Hardware:
    """From dense bf16 TFLOP/s, GB, GB/s of memory, GB/s of the link."""
    forward = Pass(OPERATIONS * KERNEL_SECONDS, 0.0)
    read = READ_SHARE * bandwidth * 1e9
    return Hardware(
        flops=MFU * tflops * 1e12,
        read=read,
        merge=read / 3,  # W is read, W + B A written, and B A once in between
        memory=gigabytes * 1e9,
        resident=CONTEXT_BYTES,
        kernels=0.0,
        decode=forward,
        score=forward,
        update=Pass(3 * OPERATIONS * KERNEL_SECONDS, 0.0),
        link=link * 1e9,
    )


GPUS = {
    "l4": gpu(121, 24, 300, 32),
    "4090": gpu(165, 24, 1008, 32),
    "l40s": gpu(362, 48, 864, 32),
    "a100-40": gpu(312, 40, 1555, 300),
    "a100": gpu(312, 80, 2039, 300),
    "h100": gpu(989, 80, 3350, 450),
    "h200": gpu(989, 141, 4800, 450),
}
"""Name -> figures of NVIDIA's data sheets (A100, H100 and H200: SXM), without sparsity; the link (NVLink, or PCIe 4.0
x16) in one direction."""
