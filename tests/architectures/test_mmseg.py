"""mmsegmentation's models: the same logits as there, our class count, nothing fetched, nothing printed."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from segforge.architectures import architecture_of
from segforge.architectures.core.base import build_network
from segforge.errors import SegforgeError
from segforge.layout import VariantPaths

pytest.importorskip("mmseg", reason="the extra mmseg is not installed")

V1 = "bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024"
V2 = "bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024"
DEEPLAB = "deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024"
SMALL_DEEPLAB = "deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024"
PLUS = "deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024"


def build(config: str, classes: int = 19, **options: Any) -> torch.nn.Module:
    return build_network("mmseg", "own", classes=classes, options={"config": config, **options})


def randomise(network: torch.nn.Module) -> None:
    """Other statistics than 0 and 1, and classes that differ by more than rounding."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "conv_seg.bias")):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif name.endswith("conv_seg.weight"):
            tensor.normal_(0, 0.2, generator=generator)


@pytest.mark.filterwarnings("ignore::UserWarning:mmseg")  # of the reference
@pytest.mark.parametrize("config", [V1, V2, DEEPLAB, PLUS])
def test_same_logits_as_mmsegmentation(config: str) -> None:
    network = build(config).eval()
    randomise(network)
    import mmseg
    from mmseg.apis import init_model

    # Its own road, and its own keys: nothing may be missing or left over.
    (path,) = Path(mmseg.__file__).parent.glob(f".mim/configs/*/{config}.py")
    theirs = init_model(str(path), None, device="cpu")
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, reference = (
            functional.interpolate(logits, (64, 128), mode="bilinear", align_corners=False)
            for logits in (network(images), theirs(images, mode="tensor"))
        )
    assert reference.std() > 0.1
    assert ours.shape == (2, 19, 64, 128)
    assert (ours - reference).abs().max() <= 1e-5


@pytest.mark.parametrize(("config", "heads"), [(V1, 3), (V2, 5), (SMALL_DEEPLAB, 2)])
def test_training_gives_every_heads_logits_and_eval_the_first(config: str, heads: int) -> None:
    network = build(config, classes=5)
    images = torch.randn(2, 3, 64, 64)
    outputs = network(images)
    assert len(outputs) == heads
    assert {output.shape[:2] for output in outputs} == {(2, 5)}
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    last = network.eval()(images)
    assert last.shape == outputs[0].shape


def test_plain_batch_norms_and_no_losses() -> None:
    kinds = {type(module).__name__ for module in build(SMALL_DEEPLAB).modules()}
    assert "BatchNorm2d" in kinds
    assert not [kind for kind in kinds if "Sync" in kind or "Loss" in kind]


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(V2, classes=4).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_pretrained_weights_of_a_config_are_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    build(SMALL_DEEPLAB)  # `pretrained` of the model
    build("bisenetv1_r18-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024")  # `init_cfg` deep inside


def test_class_dependent_fields_follow_the_class_count() -> None:
    # Both have 19 class weights in their losses; PIDNet's heads are nested modules.
    for config in ("cgnet_fcn_4xb4-60k_cityscapes-680x680", "pidnet-s_2xb6-120k_1024x1024-cityscapes"):
        network = build(config, classes=2).eval()
        with torch.inference_mode():
            assert network(torch.randn(1, 3, 64, 64)).shape[:2] == (1, 2)


def test_an_override_is_laid_over_the_config() -> None:
    at16 = {"backbone": {"strides": [1, 2, 2, 1], "dilations": [1, 1, 1, 2]}, "decode_head": {"dilations": [1, 6]}}
    options = {"configs": {"resnet18": SMALL_DEEPLAB}, "override": {"resnet18": at16}}
    network = build_network("mmseg", "resnet18", classes=3, options=options).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 64, 96)).shape == (1, 3, 4, 6)
    other = build_network("mmseg", "resnet18", classes=3, options=options | {"override": {"resnet50": at16}}).eval()
    with torch.inference_mode():
        assert other(torch.randn(1, 3, 64, 96)).shape == (1, 3, 8, 12)


def test_any_input_size() -> None:
    network = build(V1, classes=3).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 97, 131)).shape == (1, 3, 13, 17)


def test_builds_in_silence() -> None:
    code = (
        "from segforge.architectures.core.base import build_network\n"
        f"build_network('mmseg', 'own', classes=2, options={{'config': {V1!r}}})"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: build("bisenetv1_r18-d32_4xb4-160k_cityscapes-1024"), f"no config(.|\n)*{V1}"),
        (lambda: build("@"), r"for example \w+"),
        (lambda: build(""), r"mmseg\.config="),
        (lambda: build("ocrnet_hr18_4xb2-40k_cityscapes-512x1024"), "CascadeEncoderDecoder"),
        (lambda: build("mask2former_r50_8xb2-90k_cityscapes-512x1024"), "mmdet"),
        (lambda: build("convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512"), "mmpretrain"),
        (lambda: build(V1, configs={"resnet18": V1}), "resnet18"),
        (lambda: build("pidnet-s_2xb6-120k_1024x1024-cityscapes")(torch.randn(2, 3, 64, 64)), "cannot be trained"),
    ],
)
def test_what_cannot_be_had_is_refused(run: Callable[[], object], said: str) -> None:
    with pytest.raises(SegforgeError, match=said):
        run()


def test_the_command_of_a_variant_asks_for_the_config() -> None:
    assert VariantPaths("mmseg-own-shapes").command("train").endswith(" dataset=shapes mmseg.config=<name>")


def test_without_mmsegmentation_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmseg", None)
    with pytest.raises(SegforgeError, match=r"segforge\[mmseg\]"):
        build(V1)


def test_weights_of_the_other_bisenet_are_refused() -> None:
    with pytest.raises(SegforgeError, match="model=bisenet_coincheung"):
        architecture_of("mmseg").convert(torch.nn.Identity(), {"cp.resnet.conv1.weight": torch.zeros(1)})
