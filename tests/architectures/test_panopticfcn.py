"""PanopticFCN: its static graph against a literal restatement of the paper's inference, and its weights' keys."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from segforge.architectures import architecture_of
from segforge.architectures.core.base import build_network
from segforge.architectures.core.deformable import DeformableConv
from segforge.architectures.core.detectron2_keys import from_detectron2
from segforge.architectures.panopticfcn import SMOOTHING, FeaturePyramid, PanopticFCN, Predictions
from segforge.errors import SegforgeError

THINGS = [1, 3, 4]
CLASSES = 6


def network(**options: object) -> PanopticFCN:
    torch.manual_seed(0)
    settings = {"things": THINGS, "channels": 32, "embedding": 16, "convs": 2, "norm": "GN", **options}
    built = build_network("panopticfcn", "resnet18", classes=CLASSES, options=settings)
    assert isinstance(built, PanopticFCN)
    return built


def predictions(net: PanopticFCN, seed: int, batch: int = 2) -> Predictions:
    """Maps with a few clear things and stuff regions, as a trained network would give them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    centres = [noise(batch, len(THINGS), *size) * 2 - 2 for size in sizes]
    regions = [noise(batch, 1 + CLASSES - len(THINGS), *size) * 2 for size in sizes]
    # A few directions only, so that kernels of one class are alike now and then.
    basis = noise(3, 32)
    kernels = []
    for size in sizes:
        which = torch.randint(0, 3, (batch, *size), generator=generator)
        kernels.append((basis[which] + 0.2 * noise(batch, *size, 32)).permute(0, 3, 1, 2).contiguous() * 3)
    return Predictions(centres, regions, kernels, noise(batch, 16, 32, 48))


Thing = tuple[float, int, torch.Tensor]


def literal(net: PanopticFCN, given: Predictions, image: int) -> tuple[list[Thing], torch.Tensor, bool]:
    """One image by lists and loops: things as (score, class, mask) from the best on, stuff, and if any were fused."""
    rules = net.inference
    found = []
    for level, window in enumerate(SMOOTHING):
        score = given.centres[level][image].sigmoid()
        score = (score + functional.avg_pool2d(score[None], window, 1, window // 2)[0]) / 2
        height, width = score.shape[1:]
        peaks = []
        for kind in range(len(THINGS)):
            for y in range(height):
                for x in range(width):
                    around = score[kind, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                    if score[kind, y, x] == around.max():
                        peaks.append((float(score[kind, y, x]), kind, given.kernels[level][image, :, y, x]))
        peaks.sort(key=lambda peak: -peak[0])
        found += peaks[: min(height * width, rules.candidates // 2)]
    found = sorted((p for p in found if p[0] > rules.thing_threshold), key=lambda peak: -peak[0])
    kernels = [functional.linear(k, net.thing_generator.weight.flatten(1), net.thing_generator.bias) for *_, k in found]
    taken = [False] * len(found)
    features = given.features[image].flatten(1)
    things = []
    leaders: list[list[int]] = []
    for i in range(len(found)):
        alike = [
            j
            for j in range(i, len(found))
            if found[i][1] == found[j][1]
            and functional.cosine_similarity(kernels[i], kernels[j], dim=0) >= rules.similarity
        ]
        # Whatever came before it and was like it, led or not, keeps an item from leading.
        if not taken[i]:
            leaders.append([i])
        for j in alike:
            if not taken[j]:
                if leaders[-1][0] == i and j != i:
                    leaders[-1].append(j)
                taken[j] = True
    for group in leaders:
        kernel = torch.stack([kernels[j] for j in group]).mean(0)
        mask = (kernel @ features).sigmoid()
        inside = mask[mask > rules.mask_threshold]
        score = found[group[0]][0] * (float(inside.mean()) if len(inside) else 0.0)
        things.append((score, THINGS[found[group[0]][1]], mask.reshape(given.features.shape[2:])))
    things.sort(key=lambda thing: -thing[0])
    votes: dict[int, list[torch.Tensor]] = {}
    for level in range(len(SMOOTHING)):
        score = given.regions[level][image].sigmoid()
        best = score.argmax(0)
        for kind in best.unique().tolist():
            if score[kind][best == kind].mean() > rules.stuff_threshold:
                pooled = ((best == kind) * given.kernels[level][image]).mean((1, 2))
                generator = net.stuff_generator
                votes.setdefault(kind, []).append(
                    functional.linear(pooled, generator.weight.flatten(1), generator.bias)
                )
    stuff = torch.zeros(len(net.stuff) + 1, *given.features.shape[2:])
    for kind, own in votes.items():
        stuff[kind] = (torch.stack(own).mean(0) @ features).sigmoid().reshape(stuff.shape[1:])
    return things, stuff, any(len(group) > 1 for group in leaders)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_the_static_graph_finds_what_loops_find(seed: int) -> None:
    net = network().eval()
    torch.nn.init.normal_(net.thing_generator.weight, std=0.3)
    torch.nn.init.normal_(net.stuff_generator.weight, std=0.3)
    net.inference = replace(net.inference, candidates=40, detections=60, stuff_threshold=0.6)
    given = predictions(net, seed)
    masks, scores, classes, stuff = net.decode(given)
    fused = False
    for image in range(2):
        wanted, regions, merged = literal(net, given, image)
        count = sum(score > 0 for score, *_ in wanted)
        fused |= merged
        found = int((scores[image] > 0).sum())
        assert found == min(count, 60)
        for index in range(found):
            score, kind, mask = wanted[index]
            assert float(scores[image, index]) == pytest.approx(score, abs=1e-5)
            assert int(classes[image, index]) == kind
            torch.testing.assert_close(masks[image, index], mask, atol=1e-5, rtol=0)
        torch.testing.assert_close(stuff[image], regions, atol=1e-5, rtol=0)
    assert fused, "no kernels were alike: the test says nothing about fusion"


def test_outputs_have_sizes_that_do_not_depend_on_values() -> None:
    net = network(inference={"detections": 7}).eval()
    with torch.no_grad():
        masks, scores, classes, stuff = net(torch.randn(3, 3, 64, 96))
    assert masks.shape == (3, 7, 16, 24)
    assert scores.shape == classes.shape == (3, 7)
    assert stuff.shape == (3, 1 + CLASSES - len(THINGS), 16, 24)
    assert all(a >= b for row in scores.tolist() for a, b in pairwise(row))
    assert set(classes.unique().tolist()) <= set(THINGS)


def test_fast_thresholds_only_drop_things() -> None:
    net = network().eval()
    given = predictions(net, 1)
    with torch.no_grad():
        slow = (net.decode(given)[1] > 0).sum()
        net.inference = replace(net.inference, thing_threshold=0.5)
        fast = (net.decode(given)[1] > 0).sum()
    assert 0 < fast < slow


def test_deformable_convolution_samples_as_torchvision_does() -> None:
    torch.manual_seed(1)
    conv = DeformableConv(6, 5, bias=True)
    torch.nn.init.normal_(conv.offset_mask.weight, std=0.3)
    torch.nn.init.normal_(conv.offset_mask.bias, std=2.0)
    torch.nn.init.normal_(conv.bias)
    images = torch.randn(2, 6, 9, 13)
    with torch.no_grad():
        torch.testing.assert_close(conv.eval()(images), conv.train()(images), atol=2e-5, rtol=1e-4)


def test_the_pyramid_is_torchvisions_to_the_bit() -> None:
    """Only the order in which the first weights are drawn differs, and with it every score of a training."""
    ours = FeaturePyramid([8, 16, 24, 32], 12)
    theirs = FeaturePyramidNetwork([8, 16, 24, 32], 12, LastLevelP6P7(12, 12))
    renamed = {}
    for key, value in ours.state_dict().items():
        part, *rest = key.split(".")
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}.get(part)
        renamed[f"{blocks}.{rest[0]}.0.{rest[1]}" if blocks else f"extra_blocks.{key}"] = value
    theirs.load_state_dict(renamed)
    features = [torch.randn(2, 8 * (i + 1), 32 >> i, 64 >> i) for i in range(4)]
    with torch.no_grad():
        expected = theirs({str(i): x for i, x in enumerate(features)}).values()
        for mine, other in zip(ours(features), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def detectron2_keys(net: PanopticFCN, deform: bool) -> dict[str, torch.Tensor]:
    """The state dict of `net` under the names that the original project gives its modules."""
    stages = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
    named = {}
    for key, value in net.state_dict().items():
        part, rest = key.split(".", 1)
        words = rest.split(".")
        if key.endswith("num_batches_tracked"):
            continue
        if part == "backbone":
            if words[0] in ("conv1", "bn1"):
                new = f"stem.conv1{'.norm' if words[0] == 'bn1' else ''}.{words[-1]}"
            else:
                kind = {"downsample": "shortcut"}.get(words[2], words[2].replace("bn", "conv"))
                norm = ".norm" if words[2].startswith("bn") or words[2:4] == ["downsample", "1"] else ""
                new = f"{stages[words[0]]}.{words[1]}.{kind}{norm}.{words[-1]}"
            new = f"backbone.bottom_up.{new}"
        elif part == "fpn":
            top = words[0] in ("p6", "p7")
            level = f"top_block.{words[0]}" if top else f"fpn_{words[0]}{int(words[1]) + 2}"
            new = f"backbone.{level}.{words[-1]}"
        elif part == "semantic_fpn":
            level, number, inner = int(words[1]), int(words[2]), words[3]
            at = number * (2 if level else 1)
            new = f"semantic_fpn.p{level + 2}.{at}.{'norm.' if inner == '1' else ''}{words[-1]}"
        elif words[0] == "tower":
            number, norm = int(words[1]) + 1, "norm." if words[2] == "1" else ""
            inner = "" if not (deform and part == "position_head") else "dcnv2."
            if "offset_mask" in words:
                inner, norm = "offset_mask_conv.", ""
            new = f"{part}.{part}.{part}_head_{number}.{inner}{norm}{words[-1]}"
        elif part == "kernel_head":
            new = f"kernel_head.out_conv.{words[-1]}"
        elif part == "feature_encoder":
            new = f"feature_encoder.encode_head.encode_head_head_{int(words[0]) + 1}.{words[-1]}"
        elif part in ("thing_generator", "stuff_generator"):
            new = f"{part}.embed_extractor.{rest}"
        else:
            new = key
        assert new not in named
        named[new] = value
    return named


@pytest.mark.parametrize("deform", [False, True])
def test_every_key_of_the_original_project_finds_its_place(deform: bool) -> None:
    torch.manual_seed(0)
    built = build_network(
        "panopticfcn", "resnet50", classes=CLASSES, options={"things": THINGS, "deform": deform, "stride_in_1x1": True}
    )
    assert isinstance(built, PanopticFCN)
    given = detectron2_keys(built, deform)
    assert "backbone.bottom_up.res4.5.conv3.norm.running_var" in given
    assert "semantic_fpn.p5.4.norm.weight" in given
    renamed = from_detectron2(given)
    wanted = {k: v for k, v in built.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert renamed.keys() == wanted.keys()
    assert all(torch.equal(renamed[key], wanted[key]) for key in wanted)
    assert architecture_of("panopticfcn").convert(built, wanted) is wanted  # its own keys stay as they are


def test_stride_in_1x1_moves_the_stride_and_nothing_else() -> None:
    options = {"things": THINGS, "channels": 32}
    plain = build_network("panopticfcn", "resnet50", classes=CLASSES, options=options).backbone
    moved = build_network(
        "panopticfcn", "resnet50", classes=CLASSES, options={**options, "stride_in_1x1": True}
    ).backbone
    assert plain.layer2[0].conv2.stride == moved.layer2[0].conv1.stride == (2, 2)
    assert plain.layer2[0].conv1.stride == moved.layer2[0].conv2.stride == (1, 1)
    shapes = [[tuple(x.shape) for x in trunk(torch.zeros(1, 3, 64, 64))] for trunk in (plain.eval(), moved.eval())]
    assert shapes[0] == shapes[1]


def test_classes_of_one_kind_only_are_refused() -> None:
    for things in ([], list(range(CLASSES))):
        with pytest.raises(SegforgeError, match="of 6 classes are things"):
            network(things=things)
