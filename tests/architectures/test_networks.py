"""Every (model, backbone) builds and runs; the deployed graph is what plain torch operations give."""

from collections.abc import Callable

import pytest
import torch
from tiny_engine import passport_at
from torch.nn import functional

from segforge.architectures import FAMILIES, architecture_of
from segforge.architectures.core.base import build_network
from segforge.architectures.core.inference import InferenceNetwork
from segforge.errors import SegforgeError

# mmseg needs a config and panopticfcn its things: test_mmseg and test_panopticfcn build them.
PLAIN = sorted({*FAMILIES} - {"mmseg", "panopticfcn"})
STRIDES = {"bisenet_coincheung": 8, "deeplabv3plus": 4}  # of the logits
PAIRS = [(model, backbone) for model in PLAIN for backbone in architecture_of(model).backbones]
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


@pytest.mark.parametrize(("model", "backbone"), PAIRS)
def test_builds_and_gives_logits_of_low_resolution(model: str, backbone: str) -> None:
    network = build_network(model, backbone, classes=7, options={}).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 64, 96))
    assert logits.shape[:2] == (2, 7)
    if model in STRIDES:
        assert logits.shape[2:] == (64 // STRIDES[model], 96 // STRIDES[model])
    part = architecture_of(model).backbone_part
    assert any(name.startswith(f"{part}.") for name, _ in network.named_parameters())
    assert any(not name.startswith(f"{part}.") for name, _ in network.named_parameters())


def test_output_stride_8_dilates_further() -> None:
    coarse, fine = (
        build_network("deeplabv3plus", "mobilenet_v2", classes=3, options={"output_stride": stride}).eval()
        for stride in (16, 8)
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert [tuple(net.encoder(images)[-1].shape[-2:]) for net in (coarse, fine)] == [(4, 4), (8, 8)]
    rates = [[m.dilation[0] for m in net.decoder.aspp.modules() if getattr(m, "dilation", 1) not in (1, (1, 1))]
             for net in (coarse, fine)]  # fmt: skip
    assert rates == [[6, 12, 18], [12, 24, 36]]


def test_same_seed_same_weights() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_network("classifier", "mobilenet_v3_small", classes=4, options={}).state_dict())
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: build_network("deeplab", "resnet50", classes=2, options={}), "deeplabv3plus"),
        (lambda: build_network("deeplabv3plus", "mobilenet_v3_small", classes=2, options={}), "resnet101"),
        (lambda: build_network("classifier", "resnet50", classes=2, options={}), "mobilenet_v3_large"),
        (lambda: build_network("deeplabv3plus", "resnet50", classes=2, options={"width": 3}), "width"),
        (lambda: build_network("deeplabv3plus", "resnet50", classes=2, options={"output_stride": 4}), "8 or 16"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_known_names(build: Callable[[], object], said: str) -> None:
    with pytest.raises(SegforgeError, match=said):
        build()


class Fixed(torch.nn.Module):
    """A stand-in network: a 1x1 convolution at a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(3, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(functional.avg_pool2d(images, 4))  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", ["nchw_float32", "nhwc_uint8"])
@pytest.mark.parametrize("tail", ["argmax", "logits"])
def test_wrapped_equals_plain_operations(layout: str, tail: str) -> None:
    torch.manual_seed(0)
    network, pixels = Fixed(), torch.randint(0, 256, (2, 32, 40, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    normalised = (pixels.permute(0, 3, 1, 2).double() - mean) / std
    images = pixels if layout == "nhwc_uint8" else normalised.float()
    passport = passport_at(5, 33, 47, tail=tail, input_layout=layout, mean=MEAN, std=STD)
    with torch.inference_mode():
        got = InferenceNetwork(network, passport)(images)
        logits = functional.interpolate(network(normalised.float()), (33, 47), mode="bilinear", align_corners=False)
    if tail == "logits":
        torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-5)
    else:
        assert got.dtype == torch.uint8
        assert (got == logits.argmax(1)).float().mean() > 0.999


def test_classification_gives_logits_whatever_the_tail() -> None:
    network = build_network("classifier", "mobilenet_v3_small", classes=4, options={})
    wrapped = InferenceNetwork(network, passport_at(4, 0, 0, task="classification", tail="argmax", mean=MEAN, std=STD))
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        got = wrapped(images)
        torch.testing.assert_close(got, network(images))
    assert got.dtype == torch.float32
    assert not wrapped.training
