"""The CUDA room on a GPU: one runner in two ways, launched each time and replayed as a graph."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segforge.passport import TensorSpec
from segforge.runtimes.core.cuda import CudaRunner, Tensors

SHAPE, BATCHES = (3, 64, 80), (1, 2, 3, 8)


class Blur(CudaRunner):
    """A convolution and an argmax: work whose result says which input it saw."""

    def __init__(self, graphs: bool) -> None:
        super().__init__(0)
        self.graphs = graphs
        self.launched = 0

    def open_engine(self, device: torch.device) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)
        self._weight = torch.randn(5, 3, 3, 3).to(device)

    def describe(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        images, ids = TensorSpec("images", "float32", SHAPE, 1, 8), TensorSpec("ids", "uint8", SHAPE[1:], 1, 8)
        return [images], [ids, TensorSpec("logits", "float32", (5, *SHAPE[1:]), 1, 8)]

    def enqueue(self, inputs: Tensors) -> Tensors:
        self.launched += 1
        logits = torch.nn.functional.conv2d(inputs["images"], self._weight, padding=1)
        return {"ids": logits.argmax(1).to(torch.uint8), "logits": logits}

    def close_engine(self) -> None:
        self._weight = torch.empty(0)


def images(batch: int, seed: int) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(seed).standard_normal((batch, *SHAPE), dtype=np.float32)}


@pytest.mark.gpu
def test_a_graph_gives_the_bytes_of_plain_launches_at_every_batch() -> None:
    with Blur(graphs=False) as plain, Blur(graphs=True) as replayed:
        for seed in range(5):
            for batch in BATCHES:  # in turn: each batch has buffers and a graph of its own
                wanted, found = (runner.run(images(batch, seed)) for runner in (plain, replayed))
                for name in wanted:
                    np.testing.assert_array_equal(found[name], wanted[name])
        assert plain.launched == 5 * len(BATCHES)
        assert replayed.launched == 2 * len(BATCHES), "once to warm up and once to capture, then only replayed"


@pytest.mark.gpu
def test_a_graph_is_timed_without_its_capture() -> None:
    with Blur(graphs=True) as runner:
        runner.load(images(8, 0))
        seconds = [runner.timed_execute() for _ in range(20)]
    assert 0 < max(seconds) < 0.05
    assert runner.launched == 2


@pytest.mark.gpu
def test_many_runs_leave_the_memory_as_it_was() -> None:
    with Blur(graphs=True) as runner:
        for batch in BATCHES:
            runner.run(images(batch, 0))
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        for number in range(2000):
            runner.run(images(BATCHES[number % len(BATCHES)], number % 7))
        torch.cuda.synchronize()
        assert before - torch.cuda.mem_get_info()[0] < 2 * 2**20


@pytest.mark.gpu
def test_two_runners_live_side_by_side() -> None:
    with Blur(graphs=True) as one, Blur(graphs=True) as other:
        for seed in range(20):
            one.load(images(2, seed))
            other.load(images(2, seed + 100))
            one.execute()
            other.execute()
            first, second = one.fetch()["logits"].copy(), other.fetch()["logits"].copy()
            np.testing.assert_array_equal(first, one.run(images(2, seed))["logits"])
            np.testing.assert_array_equal(second, other.run(images(2, seed + 100))["logits"])


def test_no_gpu_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segforge.errors import SegforgeError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SegforgeError, match="needs an NVIDIA GPU"):
        Blur(graphs=False).open()
