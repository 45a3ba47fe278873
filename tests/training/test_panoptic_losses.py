"""PanopticFCN's targets and losses."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from segforge.architectures.core.base import build_network
from segforge.architectures.panopticfcn import PanopticFCN
from segforge.datasets.core.index import INSTANCES
from segforge.training import panoptic

THINGS, STUFF, SIZE = [1, 3], [0, 2], (16, 24)


def scene() -> torch.Tensor:
    """Two images 64x96: a square of class 1 and a bar of class 3 on stuff 0 and 2; the second has no thing."""
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    labels[:, 32:] = 2 * INSTANCES
    labels[0, 8:28, 16:36] = 1 * INSTANCES + 1
    labels[0, 40:60, 8:88] = 3 * INSTANCES + 1
    labels[1, :4] = -1
    return labels


def test_things_have_their_masks_centres_and_boxes() -> None:
    found = panoptic.find_things(scene(), THINGS, SIZE)
    assert found.image.tolist() == [0, 0]
    assert found.kind.tolist() == [0, 1]
    assert found.size.tolist() == [[20.0, 20.0], [20.0, 80.0]]
    assert found.masks.shape == (2, *SIZE)
    assert found.masks[0].sum() * 16 == pytest.approx(400, rel=0.02)
    # At a quarter of the size the square covers rows 2 to 6 and columns 4 to 8.
    torch.testing.assert_close(found.centre[0], torch.tensor([4.0, 6.0]))


def test_levels_answer_for_the_paper_s_sizes() -> None:
    found = panoptic.find_things(scene(), THINGS, SIZE)  # sides 20 and 40
    assert [panoptic.of_level(found, level).kind.tolist() for level in range(5)] == [[0, 1], [1], [], [], []]


def test_centres_are_bells_of_their_class() -> None:
    found = panoptic.find_things(scene(), THINGS, SIZE)
    target = panoptic.centre_targets(found, (2, 2, 8, 12), SIZE)
    assert target[0, 0].max() == target[0, 1].max() == 1
    assert divmod(int(target[0, 0].argmax()), 12) == (2, 3)
    assert (target[1] == 0).all()
    assert 1 < (target[0, 1] > 0).sum() < 96


@pytest.mark.parametrize("sides", [(10.0, 10.0), (5.0, 40.0), (100.0, 30.0)])
def test_the_radius_is_cornernet_s(sides: tuple[float, float]) -> None:
    height, width = sides
    o, total, area = 0.7, height + width, height * width
    cases = [
        (total + math.sqrt(total**2 - 4 * area * (1 - o) / (1 + o))) / 2,
        (2 * total + math.sqrt(4 * total**2 - 16 * (1 - o) * area)) / 2,
        (-2 * o * total + math.sqrt(4 * o**2 * total**2 - 16 * o * (o - 1) * area)) / 2,
    ]
    got = panoptic.gaussian_radius(torch.tensor(height), torch.tensor(width))
    assert float(got) == pytest.approx(min(cases), rel=1e-5)


def test_regions_share_out_every_known_pixel() -> None:
    regions = panoptic.stuff_regions(scene(), THINGS, STUFF, SIZE)
    assert regions.shape == (2, 3, *SIZE)
    torch.testing.assert_close(regions[0].sum(0), torch.ones(SIZE))
    assert (regions[1].sum(0)[0] == 0).all()  # void
    assert regions[0, 0, 3, 6] == 1  # inside the square: some thing
    assert regions[0, 1, 0, 0] == 1
    assert regions[0, 2, -1, 0] == 1


def test_dice_is_nothing_for_a_perfect_mask_and_does_not_see_void() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    known = torch.ones(1, 4)
    assert float(panoptic.dice_loss(mask, mask, known)) == pytest.approx(0)
    assert float(panoptic.dice_loss(1 - mask, mask, known)) == pytest.approx(1)
    spoilt = mask.clone()
    spoilt[0, 3] = 1
    known[0, 3] = 0
    assert float(panoptic.dice_loss(spoilt, mask, known)) == pytest.approx(0)


def test_focal_loss_is_weighted_cross_entropy() -> None:
    logits, targets = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    p = logits.sigmoid()
    wanted = torch.where(targets == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(panoptic.focal_loss(logits, targets), wanted)
    soft = torch.tensor([0.3, 0.0, 0.9])
    theirs = sigmoid_focal_loss(logits, soft, alpha=panoptic.ALPHA, gamma=panoptic.GAMMA)
    torch.testing.assert_close(panoptic.focal_loss(logits, soft), theirs)


def network() -> PanopticFCN:
    torch.manual_seed(0)
    options = {"things": THINGS, "channels": 32, "embedding": 16, "convs": 1, "norm": "BN"}
    built = build_network("panopticfcn", "resnet18", classes=4, options=options)
    assert isinstance(built, PanopticFCN)
    return built.train()


def test_one_scene_is_learnt_by_heart() -> None:
    net, labels = network(), scene()
    images = torch.stack([(labels == k).float() for k in (0, 2 * INSTANCES, INSTANCES + 1)], 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        loss = panoptic.panoptic_loss(net, net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_every_parameter_is_trained_and_scenes_without_things_too() -> None:
    net, labels = network(), scene()
    panoptic.panoptic_loss(net, net(torch.randn(2, 3, 64, 96)), labels).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    alone = panoptic.panoptic_loss(net, net(torch.randn(2, 3, 64, 96)), labels[[1, 1]])
    assert torch.isfinite(alone)
    empty = panoptic.panoptic_loss(net, net(torch.randn(2, 3, 64, 96)), torch.full_like(labels, -1))
    assert torch.isfinite(empty)
    empty.backward()
