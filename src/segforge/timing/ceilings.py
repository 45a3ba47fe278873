"""What this machine can do at most: matrix rates and copy bandwidth, measured, never from a datasheet."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segforge import layout
from segforge.config import MachineConfig
from segforge.errors import SegforgeError
from segforge.files import read_json, write_json
from segforge.progress import say, track
from segforge.runtimes.base import usable_cores
from segforge.timing.state import MAX_OTHERS, CpuWatch

MIB = 2**20
CPU_SETS_MIB = (1, 16, 256)  # working sets, source and target together: per-core cache, shared cache, memory
GPU_SETS_MIB = (16, 256, 4096)
PRODUCTS = (512, 1024)  # side of the square matrices
CONVOLUTION = (512, 32, 3)  # channels, image side, kernel: the best case of convolutions, level with a product


@dataclass(frozen=True)
class Ceilings:
    """Of one kind of device: operations a second by precision, bytes a second by working set."""

    gflops: Mapping[str, float]
    copy_gib_s: Mapping[str, float]  # working set in MiB -> GiB read plus written per second

    def operations_per_s(self, precision: str) -> float:
        """The highest matrix rate in `precision`; raises `SegforgeError` when it was not measured."""
        if precision not in self.gflops:
            raise SegforgeError(
                f"{layout.CEILINGS} has no rate for {precision}",
                expected=f"one of {', '.join(self.gflops)}",
                hint="install the runtime that needs it, then python stages/ceilings.py",
            )
        return self.gflops[precision] * 1e9

    def bytes_per_s(self, moved: float) -> float:
        """The bandwidth for a node that moves `moved` bytes: of the largest measured set within them."""
        sets = sorted((float(mib) * MIB, rate) for mib, rate in self.copy_gib_s.items())
        within = [rate for size, rate in sets if size <= moved]
        return (within[-1] if within else sets[0][1]) * 2**30


def read_ceilings(kind: str) -> Ceilings:
    """The ceilings of this machine's `cpu` or `gpu`; raises `SegforgeError` when they were not measured."""
    raw = read_json(layout.CEILINGS, made_by="python stages/ceilings.py")
    if kind not in raw:
        raise SegforgeError(
            f"{layout.CEILINGS} has no ceilings of a {kind}",
            expected=f"one of {', '.join(k for k in ('cpu', 'gpu') if k in raw)}",
            hint="python stages/ceilings.py on the machine that is timed",
        )
    return Ceilings(gflops=raw[kind]["gflops"], copy_gib_s=raw[kind]["copy_gib_s"])


def best_seconds(work: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs of `work` within `seconds` (three at least): what the machine can do, undisturbed."""
    work()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def _graph(nodes: list[Any], weight: NDArray[Any], first: list[int], last: list[int], types: tuple[int, int]) -> bytes:
    a, c = (helper.make_tensor_value_info(n, t, s) for n, t, s in zip("ac", types, (first, last), strict=True))
    model = helper.make_model(
        helper.make_graph(nodes, "ceiling", [a], [c], [numpy_helper.from_array(weight, "b")]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _matrix_graphs(integer: bool) -> list[tuple[bytes, NDArray[Any], float]]:
    """Graph, input and operations of each kind of product, with constant right sides as in a network."""
    random = np.random.default_rng(0)
    types = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)

    def pair(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        if integer:
            return random.integers(0, 256, left, dtype=np.uint8), random.integers(-127, 128, right, dtype=np.int8)
        return random.standard_normal(left, dtype=np.float32), random.standard_normal(right, dtype=np.float32)

    found = []
    for n in PRODUCTS:
        left, right = pair((n, n), (n, n))
        node = helper.make_node("MatMulInteger" if integer else "MatMul", ["a", "b"], ["c"])
        found.append((_graph([node], right, [n, n], [n, n], types), left, 2.0 * n**3))
    if not integer:  # ONNX Runtime has no fast ConvInteger; its quantised convolutions reach the product's rate
        c, side, k = CONVOLUTION
        left, right = pair((1, c, side, side), (c, c, k, k))
        node = helper.make_node("Conv", ["a", "b"], ["c"], pads=[k // 2] * 4)
        shape = [1, c, side, side]
        found.append((_graph([node], right, shape, shape, types), left, 2.0 * c * c * k * k * side * side))
    return found


def _onnxruntime_gflops(integer: bool, seconds: float) -> float:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = usable_cores()
    graphs = _matrix_graphs(integer)
    rates = []
    for graph, left, operations in graphs:
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        work = partial(session.run, None, {"a": left})
        rates.append(operations / best_seconds(work, seconds / len(graphs)))
        del work, session  # its threads would spin beside the next one's
    return max(rates) / 1e9


def _openvino_gflops(precision: str, seconds: float) -> float:
    import openvino as ov

    graphs = _matrix_graphs(integer=False)
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": usable_cores()}
    rates = []
    for graph, left, operations in graphs:
        core = ov.Core()
        request = core.compile_model(core.read_model(graph), "CPU", properties).create_infer_request()
        request.set_input_tensor(ov.Tensor(left, shared_memory=True))
        rates.append(operations / best_seconds(request.infer, seconds / len(graphs)))
    return max(rates) / 1e9


def _copy_gib_s(mib: int, seconds: float) -> float:
    """numpy.copyto with every usable core, each on its own slice; bytes read plus bytes written."""
    cores = usable_cores()
    half = mib * MIB // 2 // cores // 8
    slices = [(np.ones(half), np.zeros(half)) for _ in range(cores)]
    repeats = max(1, 64 // mib)  # so that handing out the work costs nothing beside it

    def copy(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
        for _ in range(repeats):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(cores) as pool:
        took = best_seconds(lambda: list(pool.map(copy, slices)), seconds)
    return 2 * half * 8 * cores * repeats / took / 2**30


def measure_ceilings(config: MachineConfig) -> None:
    """Measure every ceiling for `config.ceilings_s` seconds and write models/ceilings.json.

    Rates are the best of the runs in that time: ONNX Runtime for fp32 and int8 (u8 by s8), OpenVINO
    for bf16, PyTorch on a GPU. What cannot be measured here is noted with the reason.
    """
    read_json(layout.MACHINE, made_by="python stages/probe.py")
    seconds = config.ceilings_s
    say(f"ceilings: {usable_cores()} cores -> {layout.CEILINGS}")
    tasks: dict[str, Callable[[], float]] = {
        "fp32": lambda: _onnxruntime_gflops(False, seconds),
        "int8": lambda: _onnxruntime_gflops(True, seconds),
    }
    notes: dict[str, str] = {}
    if find_spec("openvino"):
        tasks["bf16"] = lambda: _openvino_gflops("bf16", seconds)
    else:
        notes["bf16"] = "openvino is not installed: no bf16 rate"
    with CpuWatch() as watch:
        gflops = {name: round(task(), 1) for name, task in track(tasks.items(), "ceilings")}
        copies = {str(mib): round(_copy_gib_s(mib, seconds), 2) for mib in CPU_SETS_MIB}
    if watch.others > MAX_OTHERS:
        notes["load"] = f"other processes took {watch.others:.0%} of the cores; measure again on a quiet machine"
        say(f"ceilings: {notes['load']}")
    result: dict[str, Any] = {"threads": usable_cores(), "cpu": {"gflops": gflops, "copy_gib_s": copies}}
    gpu, why = _gpu(seconds)
    if gpu:
        result["gpu"] = gpu
    result["notes"] = {**notes, **why}
    write_json(layout.CEILINGS, result)
    say("ceilings: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in gflops.items()))


def _gpu(seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Matrix rates and copy bandwidth of the first GPU through PyTorch, and why what is missing is missing."""
    from segforge.timing.probe import gpus

    if not gpus():
        return {}, {"gpu": "no NVIDIA GPU"}
    from segforge.timing.gpu_ceilings import copy_gib_s, gflops

    try:
        rates, notes = gflops(seconds)
        return {"gflops": rates, "copy_gib_s": {str(mib): copy_gib_s(mib, seconds) for mib in GPU_SETS_MIB}}, notes
    except (RuntimeError, AssertionError) as error:  # a driver too old, a build of torch without CUDA, no room
        return {}, {"gpu": f"PyTorch cannot use it: {str(error).splitlines()[0]}"}
