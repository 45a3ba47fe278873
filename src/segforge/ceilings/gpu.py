"""The ceilings of an NVIDIA GPU, measured through PyTorch and timed by the device's own events."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from segforge.ceilings.cpu import shortest

SETS_MIB = (16, 256, 4096)
N = 8192  # side of the square matrices
COPIES = 20  # per graph


def _best_seconds(torch: Any, work: Callable[[], object], seconds: float) -> float:
    """The shortest of windows of ten runs within `seconds`, per run."""

    def window() -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            work()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop) / 1e4)

    return shortest(window, seconds)


def gflops(seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """Operations a second, in 1e9, by precision, and the reason for each precision without a rate."""
    torch: Any = import_module("torch")

    def product(dtype: Any, tf32: bool) -> Callable[[], object]:
        a, b = (torch.randn(N, N, device="cuda").to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return lambda: a @ b

    def int8() -> Callable[[], object]:
        a, b = (torch.randint(-127, 128, (N, N), device="cuda", dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(a, b.t())  # PyTorch has no public product of int8 (2.11)

    def fp8() -> Callable[[], object]:
        a, b = (torch.randn(N, N, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device="cuda")
        whole = torch.nn.functional.ScalingType.TensorWise
        return lambda: torch.nn.functional.scaled_mm(a, b.t(), one, whole, one, whole, output_dtype=torch.bfloat16)

    floats = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    kinds: dict[str, Any] = {name: partial(product, dtype, name == "tf32") for name, dtype in floats.items()}
    kinds |= {"fp8": fp8, "int8": int8}
    rates, notes = {}, {}
    for name, prepare in kinds.items():
        try:
            rates[name] = round(2.0 * N**3 / _best_seconds(torch, prepare(), seconds) / 1e9, 1)
        except (RuntimeError, AttributeError, ValueError) as error:  # older GPUs have no such product
            notes[f"gpu {name}"] = str(error).splitlines()[0]
    return rates, notes


def copy_gib_s(mib: int, seconds: float) -> float:
    """GiB read plus written per second by a device-to-device copy of a working set of `mib` MiB.

    Replayed as one CUDA graph: copies of a small set that are launched one by one wait for the host.
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


def measure(seconds: float, gpu: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Rates and bandwidths of one of the GPUs that this process sees, and why what is missing is missing."""
    torch: Any = import_module("torch")
    try:
        torch.cuda.set_device(gpu)
        rates, notes = gflops(seconds)
        return {"gflops": rates, "copy_gib_s": {str(mib): copy_gib_s(mib, seconds) for mib in SETS_MIB}}, notes
    except (RuntimeError, AssertionError) as error:  # a driver too old, a build of torch without CUDA, no room
        return {}, {"gpu": f"PyTorch cannot use it: {str(error).splitlines()[0]}"}
