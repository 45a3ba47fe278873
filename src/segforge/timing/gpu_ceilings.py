"""The ceilings of an NVIDIA GPU, measured through PyTorch and timed by the device's own events."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

N = 8192  # side of the square matrices
COPIES = 20  # per graph


def _best_seconds(torch: Any, work: Callable[[], object], seconds: float) -> float:
    """The shortest of windows of ten runs within `seconds` (three at least), per run."""
    best, windows, end = float("inf"), 0, time.perf_counter() + seconds
    work()
    while windows < 3 or time.perf_counter() < end:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            work()
        stop.record()
        stop.synchronize()
        best, windows = min(best, start.elapsed_time(stop) / 1e4), windows + 1
    return best


def gflops(seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """Operations a second, in 1e9, by precision, and the reason for each precision without a rate."""
    torch: Any = import_module("torch")

    def product(dtype: Any, tf32: bool = False) -> Callable[[], object]:
        a, b = (torch.randn(N, N, device="cuda").to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return lambda: a @ b

    def int8() -> Callable[[], object]:
        a, b = (torch.randint(-127, 128, (N, N), device="cuda", dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b.t())

    def fp8() -> Callable[[], object]:
        a, b = (torch.randn(N, N, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    kinds: dict[str, Callable[[], Callable[[], object]]] = {
        "fp32": lambda: product(torch.float32),
        "tf32": lambda: product(torch.float32, tf32=True),
        "fp16": lambda: product(torch.float16),
        "bf16": lambda: product(torch.bfloat16),
        "fp8": fp8,
        "int8": int8,
    }
    rates, notes = {}, {}
    for name, prepare in kinds.items():
        try:
            rates[name] = round(2.0 * N**3 / _best_seconds(torch, prepare(), seconds) / 1e9, 1)
        except (RuntimeError, AttributeError, ValueError) as error:  # older GPUs have no such product
            notes[f"gpu {name}"] = str(error).splitlines()[0]
    return rates, notes


def copy_gib_s(mib: int, seconds: float) -> float:
    """Bytes read plus written per second by a device-to-device copy of a working set of `mib` MiB, in GiB.

    The copies are replayed as one CUDA graph: launched one by one, those of a small set would wait
    for the host, and the bandwidth of the cache would come out below that of the memory.
    """
    torch: Any = import_module("torch")
    source = torch.ones(mib * 2**20 // 8, device="cuda")  # float32: half of the set
    target = torch.zeros_like(source)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(COPIES):
            torch.mul(source, 1.0, out=target)  # a kernel: an H200 replays copies of 4 GiB at two thirds of its speed
    took = _best_seconds(torch, graph.replay, seconds) / COPIES
    return round(mib / 1024 / took, 2)
