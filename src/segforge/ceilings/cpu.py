"""The ceilings of a processor, through the runtimes that compute on it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from timeit import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segforge.machine.watch import MAX_OTHERS, CpuWatch
from segforge.process import usable_cores
from segforge.terminal import track

MIB = 2**20
SETS_MIB = (1, 16, 256)  # working sets, source and target together: per-core cache, shared cache, memory
PRODUCTS = (512, 1024)  # side of the square matrices
CONVOLUTION = (512, 32, 3)  # channels, image side, kernel: the best case of convolutions, level with a product


def shortest(timed: Callable[[], float], seconds: float) -> float:
    """The least that `timed` gives within `seconds` (three runs at least, after one to warm up)."""
    timed()
    end = time.perf_counter() + seconds
    runs = [timed() for _ in range(3)]
    while time.perf_counter() < end:
        runs.append(timed())
    return min(runs)


def best_seconds(work: Callable[[], object], seconds: float) -> float:
    """The shortest of the runs of `work` within `seconds`: what the machine can do, undisturbed."""
    timer = Timer(work, timer=time.perf_counter)
    return shortest(lambda: timer.timeit(1), seconds)


def _graph(operator: str, left: NDArray[Any], right: NDArray[Any], **attributes: Any) -> bytes:
    """A model of one operator on an input `a` like `left` and the constant `right`, as in a network."""
    node = helper.make_node(operator, ["a", "b"], ["c"], **attributes)
    taken = helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)
    given = helper.make_tensor_value_info("c", TensorProto.INT32 if left.dtype == np.uint8 else TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "ceiling", [taken], [given], [numpy_helper.from_array(right, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _matrix_graphs(integer: bool) -> list[tuple[bytes, NDArray[Any], float]]:
    """Graph, input and operations of each kind of product."""
    random, found = np.random.default_rng(0), []

    def pair(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        if integer:
            return random.integers(0, 256, left, dtype=np.uint8), random.integers(-127, 128, right, dtype=np.int8)
        return random.standard_normal(left, dtype=np.float32), random.standard_normal(right, dtype=np.float32)

    for n in PRODUCTS:
        left, right = pair((n, n), (n, n))
        found.append((_graph("MatMulInteger" if integer else "MatMul", left, right), left, 2.0 * n**3))
    if not integer:  # ONNX Runtime has no fast ConvInteger; its quantised convolutions reach the product's rate
        c, side, k = CONVOLUTION
        left, right = pair((1, c, side, side), (c, c, k, k))
        found.append((_graph("Conv", left, right, pads=[k // 2] * 4), left, 2.0 * right.size * side * side))
    return found


def _onnxruntime_gflops(integer: bool, seconds: float) -> float:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = usable_cores()
    graphs, rates = _matrix_graphs(integer), []
    for graph, left, operations in graphs:
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        work = partial(session.run, None, {"a": left})
        rates.append(operations / best_seconds(work, seconds / len(graphs)))
        del work, session  # its threads would spin beside the next one's
    return max(rates) / 1e9


def _openvino_gflops(precision: str, seconds: float) -> float:
    import openvino as ov

    graphs, core, rates = _matrix_graphs(integer=False), ov.Core(), []
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": usable_cores()}
    for graph, left, operations in graphs:
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


def measure(seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Rates and bandwidths, the best within `seconds` each, and notes on what is missing or may be too low."""
    tasks = {"fp32": partial(_onnxruntime_gflops, False), "int8": partial(_onnxruntime_gflops, True)}  # u8 by s8
    notes: dict[str, str] = {}
    if find_spec("openvino"):
        tasks["bf16"] = partial(_openvino_gflops, "bf16")
    else:
        notes["bf16"] = "openvino is not installed: no bf16 rate"
    with CpuWatch() as watch:
        gflops = {name: round(task(seconds), 1) for name, task in track(tasks.items(), "ceilings")}
        copies = {str(mib): round(_copy_gib_s(mib, seconds), 2) for mib in SETS_MIB}
    if watch.others > MAX_OTHERS:
        notes["load"] = f"other processes took {watch.others:.0%} of the cores; measure again on a quiet machine"
    return {"threads": usable_cores(), "gflops": gflops, "copy_gib_s": copies}, notes
