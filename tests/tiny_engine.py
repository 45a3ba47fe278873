"""A network of two convolutions as ONNX file, PyTorch architecture and data set, for tests of the engine half."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from segforge.config.compose import register
from segforge.config.engine import EngineConfig
from segforge.files import sha256_file
from segforge.graph.file import embed_passport, save_onnx
from segforge.passport import Passport

VARIANT = "deeplabv3plus-mobilenet_v2-shapes"
HEIGHT, WIDTH, CLASSES = 8, 12, 5
PASSPORT = Passport(
    variant=VARIANT,
    model="tiny",
    family="tiny",
    backbone="none",
    options={},
    dataset="shapes",
    task="semantic",
    classes=[f"class{i}" for i in range(CLASSES)],
    colours=[[i, i, i] for i in range(CLASSES)],
    things=[],
    void=255,
    void_rule="ignore",
    score_split="test",
    height=HEIGHT,
    width=WIDTH,
    output_height=HEIGHT,
    output_width=WIDTH,
    colour_order="rgb",
    mean=[100.0, 110.0, 120.0],
    std=[50.0, 55.0, 60.0],
    input_layout="nchw_float32",
    tail="argmax",
    resize="graph",
    outputs=[{"name": "ids", "dtype": "uint8", "shape": [HEIGHT, WIDTH]}],
    batch_min=1,
    batch_max=4,
    opset=20,
    checkpoint_sha256="0" * 64,
    train_images=[],
)


def passport_at(classes: int, height: int, width: int, **changes: Any) -> Passport:
    """The passport of another semantic network: so many classes, ids of the input's own size."""
    return replace(
        PASSPORT,
        classes=[f"class {i}" for i in range(classes)],
        colours=[[i, i, i] for i in range(classes)],
        height=height,
        width=width,
        output_height=height,
        output_width=width,
        outputs=[{"name": "ids", "dtype": "uint8", "shape": [height, width]}],
        **changes,
    )


def weights() -> dict[str, NDArray[np.float32]]:
    """The network's parameters, by PyTorch's names."""
    random = np.random.default_rng(7)
    shapes = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "2.weight": (CLASSES, 4, 1, 1), "2.bias": (CLASSES,)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def tiny_onnx(passport: Passport = PASSPORT, tail: str = "argmax") -> onnx.ModelProto:
    """images [batch, 3, 8, 12] -> Conv 3x3, Relu, Conv 1x1 -> ids uint8, or logits float32."""
    nodes = [
        helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["logits"], "second"),
    ]
    last = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES, HEIGHT, WIDTH])
    if tail == "argmax":
        nodes += [
            helper.make_node("ArgMax", ["logits"], ["wide"], "argmax", axis=1, keepdims=0),
            helper.make_node("Cast", ["wide"], ["ids"], "cast", to=TensorProto.UINT8),
        ]
        last = helper.make_tensor_value_info("ids", TensorProto.UINT8, ["batch", HEIGHT, WIDTH])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights().items()]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [images], [last], initializers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    embed_passport(model, passport)
    return model


def images(batch: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    return {"images": np.random.default_rng(seed).standard_normal((batch, 3, HEIGHT, WIDTH), dtype=np.float32)}


def engine_config(root: Path, *overrides: str) -> EngineConfig:
    """conf/engine.yaml as a stage sees it, with quick benchmark settings."""
    quick = ["benchmark.batches=[1,2]", "benchmark.warmup_s=0.01", "benchmark.warmup_max_s=0.05"]
    quick += ["benchmark.measure_s=0.02", "benchmark.images=3"]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(root / "conf")):
        config = OmegaConf.to_object(compose("engine", [f"variant={VARIANT}", *quick, *overrides]))
    assert isinstance(config, EngineConfig)
    return config


def write_dataset(count: int = 5) -> None:
    """data/shapes with `count` test images of 16 x 24 and random labels."""
    random = np.random.default_rng(3)
    folder = Path("data/shapes")
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(random.integers(0, CLASSES, (16, 24), dtype=np.uint8)).save(folder / f"{i}-ids.png")
        rows.append({"image": f"{i}.png", "label": f"{i}-ids.png", "sha256": sha256_file(folder / f"{i}.png")})
    index = {
        "name": "shapes",
        "void": 255,
        "colours": PASSPORT.colours,
        "classes": {"semantic": PASSPORT.classes},
        "samples": {"semantic": {"train": [], "val": [], "test": rows}},
    }
    (folder / "index.json").write_text(json.dumps(index))


def write_typed(config: EngineConfig, **changes: Any) -> Path:
    """The typed.onnx of `config`, with changed passport."""
    target = Path("models", config.variant, config.target.name, config.precision.name, "typed.onnx")
    passport = replace(PASSPORT, **changes)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_onnx(tiny_onnx(passport), target)
    return target
