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

from segforge.architectures import bisenet_coincheung
from segforge.architectures.base import Architecture
from segforge.errors import SegforgeError, missing_extra, unknown_name

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
        if segmentor.with_auxiliary_head:
            self.auxiliary_head: torch.nn.Module = segmentor.auxiliary_head
        self.classes: int = segmentor.num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        features = self.neck(self.backbone(images))
        logits = self.decode_head(features)
        if not self.training:
            assert isinstance(logits, torch.Tensor)
            return logits
        auxiliary = getattr(self, "auxiliary_head", ())
        heads = auxiliary if isinstance(auxiliary, torch.nn.ModuleList | tuple) else (auxiliary,)
        # A few decode heads give further maps in training, the first being the one of eval mode.
        maps = [*_maps(logits), *(logits for head in heads for logits in _maps(head(features)))]
        odd = [tuple(one.shape) for one in maps if one.shape[1] != self.classes]
        if odd:
            raise SegforgeError(
                f"{type(self.decode_head).__name__} cannot be trained here: in training it gives maps of {odd}",
                expected=f"logits [N, {self.classes}, h, w] from every head",
            )
        return maps


def _maps(output: Any) -> list[torch.Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


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
    if configs and backbone not in configs:
        raise unknown_name("backbone", backbone, configs)
    name = configs[backbone] if configs else config
    if not name:
        raise SegforgeError(
            "model=mmseg without a config",
            expected="the name of one of mmsegmentation's own configs",
            hint="mmseg.config=segformer_mit-b0_8xb1-160k_cityscapes-1024x1024",
        )
    with _quiet():
        model = _model_config(name, (override or {}).get(backbone, {}))
        if model.get("type") != "EncoderDecoder":
            raise SegforgeError(
                f"{name} is a {model.get('type')}", expected="a config whose model.type is EncoderDecoder"
            )
        for head in _heads(model):
            _set_classes(head, classes)
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


def _clean(config: Any) -> None:
    """Take out, at every depth, what would fetch weights, and synchronised batch norms."""
    if isinstance(config, dict):
        config.pop("pretrained", None)
        first = config.get("init_cfg")
        found = [one for one in (first if isinstance(first, list) else [first]) if one]
        if any(one.get("type") == "Pretrained" for one in found):
            config["init_cfg"] = [one for one in found if one.get("type") != "Pretrained"] or None
        if config.get("type") in ("SyncBN", "MMSyncBN"):
            config["type"] = "BN"
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        _clean(value)


def _heads(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [model.get("decode_head"), model.get("auxiliary_head")]
    return [head for one in found if one for head in (one if isinstance(one, list | tuple) else [one])]


def _set_classes(head: Any, classes: int) -> None:
    """Give a head's config, and what it nests, another class count; take out its losses."""
    if isinstance(head, dict):
        for key in PART_OF_LOSS:
            head.pop(key, None)
        if "num_classes" in head:
            if head.get("out_channels") in (1, head["num_classes"]):  # of logits; else of features
                del head["out_channels"]
            head["num_classes"] = classes
    for value in head.values() if isinstance(head, dict) else head if isinstance(head, list | tuple) else ():
        _set_classes(value, classes)


def _built(name: str, model: dict[str, Any]) -> Any:
    from mmengine.model import revert_sync_batchnorm
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS

    try:
        segmentor = MODELS.build(model)
        segmentor.init_weights()
    except Exception as error:  # whatever a foreign constructor thinks of
        raise SegforgeError(
            f"mmsegmentation cannot build {name} here: {error}",
            expected="a model of mmsegmentation itself, without mmdet, mmpretrain or compiled operators",
        ) from error
    auxiliary = segmentor.auxiliary_head if segmentor.with_auxiliary_head else []
    heads = [segmentor.decode_head, *(auxiliary if isinstance(auxiliary, list | torch.nn.ModuleList) else [auxiliary])]
    for head in heads:
        if not isinstance(head, BaseDecodeHead):
            raise SegforgeError(
                f"{name} has a {type(head).__name__}", expected="heads that give a map of logits (BaseDecodeHead)"
            )
        del head.loss_decode
    return revert_sync_batchnorm(segmentor)  # those that a class asks for by itself


def _import_mmseg() -> None:
    """Import mmsegmentation, with a stand-in for the compiled operators that mmcv-lite leaves out."""
    if any(importlib.util.find_spec(package) is None for package in ("mmseg", "mmcv", "mmengine")):
        raise missing_extra("mmsegmentation", "mmseg", "this model")
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
    try:
        import mmseg.models  # noqa: F401
    except ImportError as error:
        raise missing_extra(str(error.name or "mmsegmentation"), "mmseg", "mmsegmentation") from error


class _NoOperators(types.ModuleType):
    """Has every operator by name, so that mmcv imports; none of them runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def convert(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """`weights` as they are: the keys are mmsegmentation's.

    Raises `SegforgeError` for weights of CoinCheung/BiSeNet, whose networks differ in their operations.
    """
    if bisenet_coincheung.is_original(weights):
        raise SegforgeError(
            "these are weights of CoinCheung/BiSeNet, which mmsegmentation's BiSeNet would compute otherwise",
            hint="model=bisenet_coincheung",
        )
    return weights


ARCHITECTURE = Architecture(
    build,
    ("resnet18", "resnet50", "resnet101", "bisenetv2", "own"),
    "backbone",
    convert=convert,
)
