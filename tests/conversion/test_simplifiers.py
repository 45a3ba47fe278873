"""Both simplifiers pass export's own comparison on every architecture of the catalogue."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from onnx import numpy_helper
from PIL import Image
from torch import nn

from segforge.checkpoint import network_of, passport_of
from segforge.config.compose import register
from segforge.config.network import NetworkConfig
from segforge.conversion.convert import convert
from segforge.conversion.parity import check_parity
from segforge.datasets.core.images import network_input, read_image
from segforge.datasets.core.index import Sample
from segforge.errors import SegforgeError
from segforge.files import sha256_file
from segforge.graph.file import embed_passport, save_onnx
from segforge.graph.interface import outputs_of, require_interface
from segforge.graph.rewrites import SIMPLIFIERS, require_constant_pads, simplified
from segforge.passport import Passport
from segforge.runtimes.core.onnx import OnnxRunner
from segforge.tasks import task_of

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, IMAGES = 64, 96, 5
VARIANTS: list[str] = [
    *yaml.safe_load((ROOT / "params.yaml").read_text())["variants"],
    "bisenet_coincheung-resnet18-shapes",  # V1
    "bisenet_coincheung-bisenetv2-shapes",  # V2
]
FAULTY = ["deeplabv3plus-mobilenet_v2-shapes", "classifier-mobilenet_v3_small-shapes"]  # class ids, and logits
# Of a panoptic network, in the order in which they run; of others the last one that runs.
PANOPTIC = ("position_head.out_inst", "position_head.out_sem", "kernel_head.out", "thing_generator")


@dataclass(frozen=True)
class Exported:
    """A variant as export leaves it, with images to compare it on."""

    config: NetworkConfig
    passport: Passport
    model: onnx.ModelProto
    path: Path
    samples: list[Sample]


def composed_at(variant: str) -> NetworkConfig:
    """The config of `variant` at a small size; labels are as large as the input, as in the catalogue."""
    model, backbone, dataset = variant.split("-")
    overrides = [f"model={model}", f"backbone={backbone}", f"dataset={dataset}"]
    overrides += [
        f"{part}.{side}" for part in ("recipe.input", "dataset") for side in (f"height={HEIGHT}", f"width={WIDTH}")
    ]
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        config = OmegaConf.to_object(compose("network", overrides))
    assert isinstance(config, NetworkConfig)
    config.check()
    assert config.variant == variant
    return config


def soft_patches(folder: Path, count: int) -> list[Sample]:
    """Image files of soft patches of many sizes."""
    random, samples = np.random.default_rng(0), []
    for i in range(count):
        total = np.zeros((HEIGHT, WIDTH, 3))
        for cells in (2, 4, 16):
            patches = Image.fromarray(random.integers(0, 256, (cells, 2 * cells, 3), np.uint8))
            total += np.asarray(patches.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) - 128.0
        path = folder / f"{i}.png"
        Image.fromarray((128 + total).clip(0, 255).astype(np.uint8)).save(path)
        samples.append(Sample(path, 0, sha256_file(path)))
    return samples


def last_layers(network: nn.Module, images: torch.Tensor) -> list[nn.Module]:
    """The layers that decide what comes out."""
    named = dict(network.named_modules())
    if set(PANOPTIC) <= named.keys():
        return [named[name] for name in PANOPTIC]
    ran: list[nn.Module] = []
    layers = [module for module in named.values() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return ran[-1:]


@torch.no_grad()
def enliven(network: nn.Module, images: torch.Tensor) -> None:
    """Statistics of a real pass, and last layers of equal mean and spread: untrained outputs are nearly constant."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean of what passes
            nn.init.ones_(module.weight)
    network.train()(images)
    network.eval()
    if hasattr(network, "stuff_generator"):
        nn.init.normal_(network.stuff_generator.weight)
    for layer in last_layers(network, images):
        given: list[torch.Tensor] = []
        nn.init.normal_(layer.weight)
        hook = layer.register_forward_hook(lambda _, __, output, given=given: given.append(output))
        network(images)
        hook.remove()
        values = torch.cat([maps.transpose(0, 1).flatten(1) for maps in given], 1)  # a row per channel
        spread, mean = values.std(1), values.mean(1)
        layer.weight /= spread.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias.copy_((layer.bias - mean) / spread)


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The variant that the test asks for, converted with random weights."""
    config = composed_at(request.param)
    if config.model.family == "mmseg":
        pytest.importorskip("mmseg", reason="the extra mmseg is not installed")
    folder = tmp_path_factory.mktemp("exported")
    classes = config.dataset.classes.get(config.model.task) or ["a", "b", "c"]  # none: the data set's own folders
    checkpoint = {"input": asdict(config.recipe.input), "classes": classes, "sha256": "0" * 64, "train_images": []}
    passport = passport_of(config, checkpoint)
    samples = soft_patches(folder, 3 * IMAGES)
    torch.manual_seed(0)
    network = network_of(config, len(classes))
    enliven(network, torch.from_numpy(network_input([read_image(sample.image) for sample in samples], passport)))
    model, path = convert(network, passport), folder / "model.onnx"
    passport = replace(passport, outputs=outputs_of(model))
    embed_passport(model, passport)
    require_interface(model, passport, path)
    save_onnx(model, path)
    return Exported(config, passport, model, path, samples[:IMAGES])


def seen(exported: Exported) -> tuple[NDArray[np.integer], dict[str, NDArray[np.generic]]]:
    """The classes that occur on the images, and the raw outputs."""
    images = network_input([read_image(sample.image) for sample in exported.samples], exported.passport)
    with OnnxRunner(exported.path) as runner:
        outputs = {name: array.copy() for name, array in runner.run({"images": images}).items()}
    task = task_of(exported.passport.task)
    found = [np.ravel(task.classes_of(one)) for one in task.predictions(outputs, exported.passport)]
    counts = np.bincount(np.concatenate(found), minlength=256)[: len(exported.passport.classes)]
    return np.flatnonzero(counts >= 0.01 * sum(map(len, found))), outputs


def compare(exported: Exported, model: onnx.ModelProto, path: Path) -> None:
    """Export's comparison of `model`, saved to `path`, with the exported file; raises `SegforgeError`."""
    require_interface(model, exported.passport, path)
    require_constant_pads(model, path)
    save_onnx(model, path)
    batches, allowed = exported.config.export.check_batches, exported.config.export.tolerance
    with OnnxRunner(exported.path) as reference, OnnxRunner(path) as candidate:
        check_parity(reference, candidate, exported.passport, exported.samples, batches, allowed)


@pytest.mark.slow
@pytest.mark.parametrize("exported", VARIANTS, indirect=True)
def test_either_simplifier_passes(exported: Exported, tmp_path: Path) -> None:
    classes, outputs = seen(exported)
    assert len(classes) >= 2
    if "logits" in outputs:
        logits = outputs["logits"]
        assert np.ptp(logits, axis=0).max() > 0.1 * np.abs(logits).max()
    if exported.passport.things:
        assert set(classes) & set(exported.passport.things)
        assert set(classes) - set(exported.passport.things)
    for simplifier in SIMPLIFIERS:
        model = simplified(exported.model, simplifier)
        compare(exported, model, tmp_path / f"{simplifier}.onnx")  # raises where it differs


@pytest.mark.slow
@pytest.mark.parametrize("simplifier", SIMPLIFIERS)
@pytest.mark.parametrize("exported", FAULTY, indirect=True)
def test_a_scaled_weight_does_not_pass(exported: Exported, simplifier: str, tmp_path: Path) -> None:
    model = simplified(exported.model, simplifier)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first = next(weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv")
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1.1), first.name))
    with pytest.raises(SegforgeError, match="DIFFERS"):
        compare(exported, model, tmp_path / "scaled.onnx")
