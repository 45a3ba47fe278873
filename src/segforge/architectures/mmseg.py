"""Any encoder-decoder of mmsegmentation 1.x (Apache-2.0), by the name of one of its own configs."""

import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

from segforge.architectures.core.base import Architecture, StateDict
from segforge.architectures.core.weights import is_coincheung
from segforge.config.rules import must, one_of
from segforge.errors import SegforgeError, missing_extra

PART_OF_LOSS = ("loss_decode", "sampler", "threshold", "ignore_index")  # of a head's config: training is ours


class MmsegNetwork(torch.nn.Module):
    """Backbone, neck and heads of an mmsegmentation model under its own state-dict keys.

    Eval mode gives the decode head's logits at its own resolution, as `mode="tensor"` does there.
    Training mode gives a list: those, then the logits of each auxiliary head.
    """

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        self.backbone: torch.nn.Module = segmentor.backbone
        self.neck: torch.nn.Module = segmentor.neck if segmentor.with_neck else torch.nn.Identity()
        self.decode_head: torch.nn.Module = segmentor.decode_head
        self.auxiliary_head = getattr(segmentor, "auxiliary_head", None)
        self.classes: int = segmentor.num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        features = self.neck(self.backbone(images))
        logits = self.decode_head(features)
        if not self.training:
            assert isinstance(logits, torch.Tensor)
            return logits
        # A few decode heads give further maps in training, the first being the one of eval mode.
        maps = [*_listed(logits), *(one for head in _listed(self.auxiliary_head) for one in _listed(head(features)))]
        odd = [tuple(one.shape) for one in maps if one.shape[1] != self.classes]
        problem = f"{type(self.decode_head).__name__} cannot be trained here: in training it gives maps of {odd}"
        must(not odd, problem, f"logits [N, {self.classes}, h, w] from every head")
        return maps


def _listed(found: Any) -> list[Any]:
    """One or several of them, or None, as a list."""
    if found is None:
        return []
    return list(found) if isinstance(found, list | tuple | torch.nn.ModuleList) else [found]


def build(
    backbone: str,
    classes: int,
    *,
    configs: Mapping[str, str] | None = None,
    config: str | None = None,
    override: Mapping[str, Mapping[str, Any]] | None = None,
) -> torch.nn.Module:
    """The network of an mmsegmentation config, for `classes` classes, with random weights.

    `configs` names a config per backbone, `config` one for every backbone; `override` says per backbone
    what is laid over the config's `model`. Nothing is ever downloaded: pretrained weights are taken out
    of the config, as are its losses. Batch norms are plain ones. Height and width of the input may be
    anything; multiples of 32 keep the ratios between the maps whole. Logits are resized to the image
    with align_corners=False later on, whatever the config says there.

    Raises `SegforgeError` without the extra `mmseg`, for a backbone without a config, for a name that
    mmsegmentation does not have, and for a config that is no plain encoder-decoder.
    """
    if configs:
        one_of(configs, "backbone", backbone)
    name = (configs[backbone] if configs else config) or ""
    hint = "mmseg.config=segformer_mit-b0_8xb1-160k_cityscapes-1024x1024"
    must(bool(name), "model=mmseg without a config", "the name of one of mmsegmentation's own configs", hint)
    with _quiet():
        model = _model_config(name, (override or {}).get(backbone, {}))
        kind = model.get("type")
        must(kind == "EncoderDecoder", f"{name} is a {kind}", "a config whose model.type is EncoderDecoder")
        _set_classes([model.get("decode_head"), model.get("auxiliary_head")], classes)
        return MmsegNetwork(_built(name, model))


def _model_config(name: str, override: Mapping[str, Any]) -> dict[str, Any]:
    """The part `model` of the named config, without preprocessing and without pretrained weights."""
    _import_mmseg()
    import mmseg
    from mmengine.config import Config

    root = Path(mmseg.__file__).parent / ".mim" / "configs"
    files = {path.stem: path for path in root.rglob("*.py") if "_base_" not in path.parts}
    if name not in files:
        near = get_close_matches(name, files, n=5, cutoff=0.4)
        shown = ", ".join(near or sorted(files)[:5])
        raise SegforgeError(f"mmsegmentation has no config {name!r}", expected=f"for example {shown}")
    try:
        whole = Config.fromfile(files[name])
    except ImportError as error:
        raise SegforgeError(f"{name} needs more than mmsegmentation: {error}") from error
    whole.merge_from_dict({"model": dict(override)})
    model: dict[str, Any] = whole.model.to_dict()
    model.pop("data_preprocessor", None)
    _clean(model)
    return model


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in a config, at any depth; the outer one first."""
    if isinstance(config, dict):
        yield config
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        yield from _parts(value)


def _clean(config: dict[str, Any]) -> None:
    """Take out, at every depth, what would fetch weights, and synchronised batch norms."""
    for part in _parts(config):
        part.pop("pretrained", None)
        found = [one for one in _listed(part.get("init_cfg")) if one]
        if any(one.get("type") == "Pretrained" for one in found):
            part["init_cfg"] = [one for one in found if one.get("type") != "Pretrained"] or None
        if part.get("type") in ("SyncBN", "MMSyncBN"):
            part["type"] = "BN"


def _set_classes(heads: Any, classes: int) -> None:
    """Give the heads' configs, and what they nest, another class count; take out their losses."""
    for part in _parts(heads):
        for key in PART_OF_LOSS:
            part.pop(key, None)
        if "num_classes" in part:
            if part.get("out_channels") in (1, part["num_classes"]):  # of logits; else of features
                del part["out_channels"]
            part["num_classes"] = classes


def _built(name: str, model: dict[str, Any]) -> Any:
    from mmengine.model import revert_sync_batchnorm
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS

    try:
        segmentor = MODELS.build(model)
        segmentor.init_weights()
    except Exception as error:  # whatever a foreign constructor thinks of
        expected = "a model of mmsegmentation itself, without mmdet, mmpretrain or compiled operators"
        raise SegforgeError(f"mmsegmentation cannot build {name} here: {error}", expected=expected) from error
    for head in [segmentor.decode_head, *_listed(getattr(segmentor, "auxiliary_head", None))]:
        fits = isinstance(head, BaseDecodeHead)
        must(fits, f"{name} has a {type(head).__name__}", "heads that give a map of logits (BaseDecodeHead)")
        del head.loss_decode
    return revert_sync_batchnorm(segmentor)  # those that a class asks for by itself


def _import_mmseg() -> None:
    """Import mmsegmentation, with a stand-in for the compiled operators that mmcv-lite leaves out."""
    if any(importlib.util.find_spec(package) is None for package in ("mmseg", "mmcv", "mmengine")):
        raise missing_extra("mmsegmentation", "mmseg", "this model")
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        stand_in = sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
        stand_in.__spec__ = ModuleSpec("mmcv._ext", None)
    try:
        import mmseg.models  # noqa: F401
    except ImportError as error:
        raise missing_extra(str(error.name or "mmsegmentation"), "mmseg", "mmsegmentation") from error


class _NoOperators(types.ModuleType):
    """Has every operator by name, so that mmcv imports; none of them runs."""

    def __getattr__(self, operator: str) -> Any:
        if operator.startswith("__"):
            raise AttributeError(operator)

        def missing(*_: object, **__: object) -> None:
            raise SegforgeError(f"{operator} is a compiled operator, which mmcv-lite does not have", expected="mmcv")

        return missing


@contextmanager
def _quiet() -> Iterator[None]:
    """mmengine logs each parameter that it initialises, and warns of what we decide ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def convert(network: torch.nn.Module, weights: StateDict) -> StateDict:
    """`weights` as they are: the keys are mmsegmentation's.

    Raises `SegforgeError` for weights of CoinCheung/BiSeNet, whose networks differ in their operations.
    """
    if is_coincheung(weights):
        problem = "these are weights of CoinCheung/BiSeNet, which mmsegmentation's BiSeNet would compute otherwise"
        raise SegforgeError(problem, hint="model=bisenet_coincheung")
    return weights


ARCHITECTURE = Architecture(build, ("resnet18", "resnet50", "resnet101", "bisenetv2", "own"), "backbone", 1, convert)
