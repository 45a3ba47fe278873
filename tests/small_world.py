"""A small world with a network that really works: coloured blobs, their labels, and the stages' artifacts.

The network averages 4 x 4 pixels, takes the nearest of five colours (a 1 x 1 convolution, as
|x - c|^2 compares like c.x - |c|^2 / 2), enlarges its logits bilinearly and takes the argmax.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from omegaconf import OmegaConf
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from segforge.config.engine import EngineConfig, MachineConfig
from segforge.datasets.core.index import load_index
from segforge.evaluation import score_runner
from segforge.files import read_json, sha256_file, write_json
from segforge.graph.file import embed_passport, load_onnx, passport_in, save_onnx
from segforge.layout import EnginePaths, VariantPaths
from segforge.passport import Passport
from segforge.runtimes.core.onnx import OnnxRunner

VARIANT = "deeplabv3plus-mobilenet_v2-shapes"
HEIGHT, WIDTH, VOID = 64, 80, 255
CLASSES = ["brick", "sky", "grass", "water", "sand"]
COLOURS = np.array([[190, 70, 60], [160, 185, 215], [85, 140, 60], [40, 85, 160], [205, 180, 110]], np.float64)
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def scene(random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image and its class ids: discs over two halves, under noise; the top two rows are void."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ids = np.where(y < random.integers(20, 44), *random.choice(5, 2, replace=False)).astype(np.uint8)
    for _ in range(5):
        inside = (y - random.integers(0, HEIGHT)) ** 2 + (x - random.integers(0, WIDTH)) ** 2
        ids[inside < random.integers(8, 20) ** 2] = random.integers(0, 5)
    image = COLOURS[ids] + random.normal(0, 22, (HEIGHT, WIDTH, 3))
    ids[:2] = VOID
    return np.clip(image, 0, 255).astype(np.uint8), ids


def write_images(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    random, rows = np.random.default_rng(seed), []
    for i in range(count):
        image, ids = scene(random)
        path, label = folder / f"{i:02}.png", folder / f"{i:02}-ids.png"
        Image.fromarray(image).save(path)
        Image.fromarray(ids).save(label)
        names = {"image": f"{folder.name}/{path.name}", "label": f"{folder.name}/{label.name}"}
        rows.append({**names, "sha256": sha256_file(path)})
    return rows


def network(passport: Passport, colours: NDArray[np.float64] = COLOURS) -> onnx.ModelProto:
    prototypes = (colours - MEAN) / STD
    arrays = {
        "average": np.tile(np.full((1, 1, 4, 4), 1 / 16), (3, 1, 1, 1)),
        "nearest": prototypes[:, :, None, None] * 4,
        "offset": -2 * (prototypes**2).sum(axis=1),
        "scales": np.array([1, 1, 4, 4]),
    }
    nodes = [
        helper.make_node("Conv", ["images", "average"], ["small"], "average", group=3, strides=[4, 4]),
        helper.make_node("Conv", ["small", "nearest", "offset"], ["logits"], "nearest"),
        helper.make_node("Resize", ["logits", "", "scales"], ["large"], "resize", mode="linear"),
        helper.make_node("ArgMax", ["large"], ["wide"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["wide"], ["ids"], "cast", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("ids", TensorProto.UINT8, ["batch", HEIGHT, WIDTH])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    embed_passport(model, passport)
    return model


class World:
    """The current folder with a data set and a variant up to simplified.onnx, as the model half leaves them."""

    def __init__(self, composed: Callable[..., Any]) -> None:
        from stages.probe import probe

        self._composed = composed
        data = Path("data/shapes")
        samples = {"train": write_images(data / "train", 24, 1), "val": [], "test": write_images(data / "test", 16, 2)}
        palette = COLOURS.astype(int).tolist()
        write_json(
            data / "index.json",
            {
                "name": "shapes",
                "void": VOID,
                "colours": palette,
                "classes": {"semantic": CLASSES},
                "samples": {"semantic": samples},
            },
        )
        self.passport = Passport(
            variant=VARIANT,
            model="deeplabv3plus",
            family="deeplabv3plus",
            backbone="mobilenet_v2",
            options={},
            dataset="shapes",
            task="semantic",
            classes=CLASSES,
            colours=palette,
            things=[],
            void=VOID,
            void_rule="ignore",
            score_split="test",
            height=HEIGHT,
            width=WIDTH,
            output_height=HEIGHT,
            output_width=WIDTH,
            colour_order="rgb",
            mean=MEAN.tolist(),
            std=STD.tolist(),
            input_layout="nchw_float32",
            tail="argmax",
            resize="graph",
            outputs=[{"name": "ids", "dtype": "uint8", "shape": [HEIGHT, WIDTH]}],
            batch_min=1,
            batch_max=8,
            opset=20,
            checkpoint_sha256="c" * 64,
            train_images=sorted(row["sha256"][:16] for row in samples["train"]),
        )
        probe(MachineConfig())
        self.checkpoint = self.model_half(VARIANT)

    def model_half(self, variant: str, colours: NDArray[np.float64] = COLOURS) -> float:
        """Write what export and simplify write; the score of the network."""
        paths = VariantPaths(variant)
        model = network(replace(self.passport, variant=variant), colours)
        paths.onnx.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(model, paths.onnx)
        save_onnx(model, paths.simplified)
        with OnnxRunner(paths.onnx) as runner:
            samples = load_index("shapes").split("semantic", "test")
            score: float = score_runner(runner, self.passport, samples, 8).result["score"]
        digest = sha256_file(paths.onnx)
        hashes = {"checkpoint_sha256": self.passport.checkpoint_sha256, "onnx_sha256": digest}
        write_json(paths.metrics("export"), {"metric": "miou", "checkpoint": score, "onnx": score, **hashes})
        made = {"simplifier": "onnxsim", "onnx_sha256": digest, "simplified_sha256": digest}
        write_json(paths.metrics("simplify"), {"metric": "miou", "simplified": score, **made})
        return score

    def config(self, precision: str = "fp32", *overrides: str, variant: str = VARIANT) -> EngineConfig:
        words = [f"variant={variant}", f"precision={precision}", "benchmark.batches=[1,8]", *overrides]
        config = OmegaConf.to_object(self._composed("engine", words))
        assert isinstance(config, EngineConfig)
        return config

    def quantize(self, config: EngineConfig) -> EnginePaths:
        from stages.quantize import quantize

        quantize(config)
        return EnginePaths(config.variant, config.target.name, config.precision.name)

    def spoil(
        self, paths: EnginePaths, change: Callable[[onnx.ModelProto], None] | None = None, **passport: Any
    ) -> None:
        """A quantize stage with a fault that it does not notice: other bytes, duly hashed, under the good score."""
        model = load_onnx(paths.typed, made_by="")
        if change:
            change(model)
        embed_passport(model, replace(passport_in(model, paths.typed), **passport))
        save_onnx(model, paths.typed)
        self.rewrite(paths.metrics("quantize"), typed_sha256=sha256_file(paths.typed))

    @staticmethod
    def rewrite(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps(read_json(path, made_by="") | changes))

    def finish(self, config: EngineConfig, *, build: bool = True) -> None:
        """build, evaluate, gate."""
        from segforge.engines.engine import build_engine
        from stages.evaluate import evaluate
        from stages.gate import gate

        if build:
            build_engine(config)
        evaluate(config)
        gate(config)
