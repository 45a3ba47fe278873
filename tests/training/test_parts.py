"""Losses, augmentation and schedule against what they say in plain words."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from segforge.config.recipe import Augment, Input, Loss, Training
from segforge.training.augment import augment_batch, draw_affine, jitter, normalise, warp
from segforge.training.losses import hard_cross_entropy, inverse_log_weights, training_loss
from segforge.training.optimisation import (
    learning_rate,
    make_optimizer,
    move_average,
    moving_average,
    set_learning_rate,
)

VOID = 9


def scene(seed: int, height: int = 24, width: int = 32) -> torch.Tensor:
    """Label ids [2, H, W] of large blobs."""
    coarse = torch.randint(0, 4, (2, 1, 3, 4), generator=torch.Generator().manual_seed(seed)).float()
    return functional.interpolate(coarse, (height, width), mode="nearest").squeeze(1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_images_and_labels_move_together(seed: int) -> None:
    """A label fed as an image lands, where it is not blended with a neighbour, on the label itself."""
    ids = scene(seed)
    augment = Augment(scale=[0.5, 2.0], rotate_deg=30)
    affine = draw_affine(2, augment, (20, 28), torch.Generator().manual_seed(seed))
    image = (ids * 20).unsqueeze(1).expand(-1, 3, -1, -1)
    fill = [float(VOID * 20)] * 3
    warped, labels = warp(image, ids, affine, (20, 28), fill=fill, void=VOID)
    assert labels is not None
    # Where the four pixels around a place agree, blending gives their value: the label must be that one.
    values = (warped[:, 0] / 20).round()
    exact = (warped[:, 0] - values * 20).abs() < 1e-2
    alike = torch.stack([(functional.pad(exact & (values == v), (1, 1, 1, 1)).float().unfold(1, 3, 1).unfold(2, 3, 1)
                          .mean((-1, -2)) == 1) for v in (0.0, 1.0, 2.0, 3.0, float(VOID))]).any(0)  # fmt: skip
    assert alike.float().mean() > 0.1
    assert torch.equal(labels[alike].float(), values[alike])


def test_no_change_is_a_plain_resize() -> None:
    ids = scene(1)
    image = torch.rand(2, 3, 24, 32) * 255
    still = Augment(scale=[1.0, 1.0], flip=False)
    affine = draw_affine(2, still, (24, 32), torch.Generator().manual_seed(0))
    warped, labels = warp(image, ids, affine, (24, 32), fill=[0.0] * 3, void=VOID)
    torch.testing.assert_close(warped, image, atol=1e-3, rtol=0)
    assert labels is not None
    assert torch.equal(labels, ids.long())


def test_flip_mirrors_left_and_right() -> None:
    image = torch.rand(64, 3, 8, 8)
    affine = draw_affine(64, Augment(scale=[1.0, 1.0], flip=True), (8, 8), torch.Generator().manual_seed(0))
    warped, _ = warp(image, None, affine, (8, 8), fill=[0.0] * 3, void=VOID)
    mirrored = [torch.allclose(new, old.flip(-1), atol=1e-5) for new, old in zip(warped, image, strict=True)]
    kept = [torch.allclose(new, old, atol=1e-5) for new, old in zip(warped, image, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_rotation_keeps_angles_on_a_wide_image() -> None:
    """A disc stays a disc: rotation is in pixels, not in shares of the sides."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    disc = (((rows - 31.5) ** 2 + (columns - 63.5) ** 2) < 20**2).float()
    affine = draw_affine(4, Augment(scale=[1.0, 1.0], rotate_deg=90, flip=False), (64, 128), torch.Generator())
    _, labels = warp(torch.zeros(4, 3, 64, 128), disc.expand(4, -1, -1), affine, (64, 128), fill=[0.0] * 3, void=VOID)
    assert labels is not None
    assert ((labels == 1).float().sum((1, 2)) / disc.sum()).sub(1).abs().max() < 0.03
    agree = ((labels == 1) == (disc == 1)).float().mean()
    assert agree > 0.99


def test_outside_lie_void_and_the_mean_colour() -> None:
    spec = Input(height=16, width=16, mean=[10.0, 20.0, 30.0], std=[2.0, 2.0, 2.0])
    images = torch.full((3, 3, 16, 16), 200, dtype=torch.uint8)
    labels = torch.ones(3, 16, 16, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    network_images, ids = augment_batch(images, labels, Augment(scale=[0.5, 0.5]), spec, VOID, generator)
    assert ids.dtype == torch.int64
    assert set(ids.unique().tolist()) == {1, VOID}
    assert 0.6 < (ids == VOID).float().mean() < 0.85  # a half in each direction
    corners = network_images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.abs() < 1e-5).any()


def test_normalise_follows_the_colour_order() -> None:
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    rgb = normalise(images, Input(height=1, width=1, mean=[10, 20, 30], std=[1, 1, 1]))
    bgr = normalise(images, Input(height=1, width=1, mean=[30, 20, 10], std=[1, 1, 1], colour_order="bgr"))
    assert rgb.flatten().tolist() == [0, 0, 0]
    assert bgr.flatten().tolist() == [0, 0, 0]
    plain = normalise(images, Input(height=1, width=1, mean=[0, 0, 0], std=[1, 1, 1], colour_order="bgr"))
    assert plain.flatten().tolist() == [30, 20, 10]


def test_jitter_changes_each_image_and_stays_in_range() -> None:
    images = torch.rand(8, 3, 6, 6) * 255
    changed = jitter(images, Augment(brightness=0.4, contrast=0.4, saturation=0.4), torch.Generator().manual_seed(1))
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert all(not torch.allclose(a, b) for a, b in zip(changed, images, strict=True))
    torch.testing.assert_close(jitter(images, Augment(), torch.Generator()), images)


def test_classes_of_pictures_pass_through() -> None:
    spec = Input(height=8, width=8)
    images, classes = torch.zeros(3, 3, 10, 12, dtype=torch.uint8), torch.tensor([2, 0, 1])
    got, labels = augment_batch(images, classes, Augment(), spec, VOID, torch.Generator())
    assert got.shape == (3, 3, 8, 8)
    assert labels.tolist() == [2, 0, 1]


@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.booleans())
@settings(max_examples=30, deadline=None)
def test_ohem_takes_the_hardest_share_of_what_is_labelled(seed: int, fraction: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 6), generator=generator)
    labels[torch.rand(2, 5, 6, generator=generator) < 0.3] = VOID
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    each = functional.cross_entropy(logits, labels, weight=weights, ignore_index=VOID, reduction="none")
    losses, share = each[labels != VOID], (torch.ones(4) if weights is None else weights)[labels[labels != VOID]]
    kept = math.ceil(torch.tensor(len(losses)) * fraction)
    order = losses.argsort(descending=True)[:kept]
    expected = losses[order].sum() / share[order].sum()
    torch.testing.assert_close(hard_cross_entropy(logits, labels, fraction, VOID, weights), expected)


def test_ohem_over_everything_is_cross_entropy() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    torch.testing.assert_close(hard_cross_entropy(logits, labels, 1.0, VOID), functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", ["cross_entropy", "ohem"])
def test_void_pixels_teach_nothing(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 4))
    labels[:, :2] = VOID
    loss = training_loss(logits, labels, Loss(name=name), void=VOID, weights=None, progress=1.0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:, :, :2].abs().max() == 0
    assert logits.grad[:, :, 2:].abs().max() > 0


def test_ohem_starts_when_the_recipe_says() -> None:
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    loss = Loss(name="ohem", ohem_start=0.5, ohem_fraction=0.2)
    before, after = (
        training_loss(logits, labels, loss, void=VOID, weights=None, progress=progress) for progress in (0.49, 0.5)
    )
    torch.testing.assert_close(before, functional.cross_entropy(logits, labels))
    assert after > before


def test_logits_are_resized_to_the_labels_for_the_loss() -> None:
    logits, labels = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 8, 8))
    large = functional.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    got = training_loss(logits, labels, Loss(), void=VOID, weights=None, progress=0)
    torch.testing.assert_close(got, functional.cross_entropy(large, labels))


def test_inverse_log_weights() -> None:
    got = inverse_log_weights(torch.tensor([75, 25, 0]))
    assert got.tolist() == pytest.approx([1 / math.log(1.77), 1 / math.log(1.27), 1 / math.log(1.02)])


def test_poly_schedule_under_a_warm_up() -> None:
    training = Training(epochs=1, batch=1, lr=0.1, warmup=0.1, power=0.9)
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[4] == pytest.approx(0.05 * 0.96**0.9)
    assert rates[9] == pytest.approx(0.1 * 0.91**0.9)
    assert rates[50] == pytest.approx(0.1 * 0.5**0.9)
    assert rates[99] == pytest.approx(0.1 * 0.01**0.9)
    assert all(a > b for a, b in pairwise(rates[9:]))


def small_network() -> torch.nn.Module:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    return torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(4, 2)})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed_and_the_backbone_has_its_own_rate(name: str) -> None:
    network = small_network()
    training = Training(epochs=1, batch=1, lr=0.1, optimizer=name, weight_decay=0.03, backbone_lr_factor=0.25)
    optimizer = make_optimizer(network, "backbone", training)
    assert not optimizer.defaults.get("nesterov")  # the published schedules of SGD have plain momentum
    set_learning_rate(optimizer, 0.2)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    wanted = {
        name: (0.2 * (0.25 if name.startswith("backbone") else 1), 0.03 if parameter.ndim > 1 else 0.0)
        for name, parameter in network.named_parameters()
    }
    assert {name: found[id(p)] for name, p in network.named_parameters()} == wanted


def test_average_follows_weights_and_statistics() -> None:
    network = small_network()
    average = moving_average(network)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(8)
    before = average.module.state_dict()["head.weight"].clone()
    move_average(average, network, step=1000, decay=0.5)
    after = average.module.state_dict()
    torch.testing.assert_close(after["head.weight"], (before + 8) / 2)
    torch.testing.assert_close(after["backbone.1.running_mean"], torch.full((4,), 4.0))
    assert after["backbone.1.num_batches_tracked"] == 8


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_average_is_the_plain_formula_to_the_last_bit(decay: float) -> None:
    """Each step moves it by 1 - min(decay, (1 + step) / (10 + step)) of the way, the first too; counts are copied."""
    generator = torch.Generator().manual_seed(6)
    network = small_network().train()
    average = moving_average(network)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not any(module.training for module in average.modules())
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            network["backbone"](torch.randn(2, 3, 5, 5, generator=generator))  # type: ignore[index]
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        move_average(average, network, step, decay)
        share = 1 - min(decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                expected[key].lerp_(value, share)
            else:
                expected[key].copy_(value)
        found = average.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), step
        for key in ("head.weight", "head.bias", "backbone.1.running_mean", "backbone.1.running_var"):
            assert not torch.equal(found[key], network.state_dict()[key]), (key, step)
    assert found["backbone.1.num_batches_tracked"] == 12
