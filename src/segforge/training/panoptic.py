"""PanopticFCN's targets and losses (arXiv 2012.00720), over whole batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import masks_to_boxes

from segforge.datasets.core.index import INSTANCES

if TYPE_CHECKING:
    from segforge.architectures.panopticfcn import PanopticFCN, Predictions

# Square roots of box areas, in pixels, that each level answers for; they overlap on purpose.
SCALES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
POSITIVES = 7  # places of a thing whose kernels are trained
OVERLAP = 0.7  # of boxes whose centres still count as near (CornerNet, arXiv 1808.01244)
WEIGHTS = {"position things": 1.0, "position stuff": 1.0, "things": 3.0, "stuff": 3.0}  # of the four losses
ALPHA, GAMMA = 0.25, 2.0  # focal loss (arXiv 1708.02002)
resized = partial(functional.interpolate, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Things:
    """The things of a batch, one after another."""

    image: Tensor  # int64 [n]: which image of the batch
    kind: Tensor  # int64 [n]: which of the thing classes
    masks: Tensor  # float32 [n, H/4, W/4], 0..1
    centre: Tensor  # float32 [n, 2]: mean row and column, at stride 4
    size: Tensor  # float32 [n, 2]: height and width of the box, in pixels


def panoptic_loss(network: "PanopticFCN", predictions: "Predictions", labels: Tensor) -> Tensor:
    """The sum of the four losses, a scalar: positions of things and stuff, masks of things and stuff.

    `labels` are instance maps int64 [N, H, W] (class * INSTANCES + number, negative where void);
    void pixels are left out of the masks.
    """
    features = predictions.features.float().flatten(2)  # [N, E, P]
    size = predictions.features.shape[2:]
    known = (resized((labels >= 0).float().unsqueeze(1), size=size) > 0.5).float().flatten(1)  # [N, P]
    things = find_things(labels, network.things, size)
    regions = stuff_regions(labels, network.things, network.stuff, size)
    totals = {name: features.new_zeros(()) for name in WEIGHTS}
    counts = dict.fromkeys(WEIGHTS, 0)
    levels = zip(predictions.centres, predictions.regions, predictions.kernels, strict=True)
    for level, (centre, region, kernels) in enumerate(levels):
        centre, region, kernels = centre.float(), region.float(), kernels.float()
        chosen = of_level(things, level)
        totals["position things"] += focal_loss(centre, centre_targets(chosen, centre.shape, size)).sum()
        target = resized(regions, size=region.shape[2:])
        target = torch.where(target < 0.5, 0.0, target.clamp(max=1))
        totals["position stuff"] += focal_loss(region, target).mean((2, 3)).sum()
        if len(chosen.image):
            weights, found = thing_kernels(centre, kernels, chosen)
            embedded = _embedded(network.thing_generator, found)  # [n, k, E]
            predicted = torch.einsum("nke,nep->nkp", embedded, features.index_select(0, chosen.image)).sigmoid()
            lost = dice_loss(predicted, chosen.masks.flatten(1).unsqueeze(1), known[chosen.image].unsqueeze(1))
            totals["things"] += (lost * weights).sum()
            counts["things"] += len(chosen.image)
        present = target.flatten(2).sum(2) > 0  # [N, S]
        image, kind = present.nonzero(as_tuple=True)
        if len(image):
            inside = (target[image, kind] > 0).float()
            pooled = (inside.unsqueeze(1) * kernels.index_select(0, image)).mean((2, 3))
            embedded = _embedded(network.stuff_generator, pooled)
            predicted = torch.einsum("ne,nep->np", embedded, features.index_select(0, image)).sigmoid()
            totals["stuff"] += dice_loss(predicted, regions[image, kind].flatten(1), known[image]).sum()
            counts["stuff"] += len(image)
    counts["position things"], counts["position stuff"] = counts["things"], len(labels)
    parts = [WEIGHTS[name] * total / max(counts[name], 1) for name, total in totals.items()]
    return torch.stack(parts).sum()


def find_things(labels: Tensor, things: Sequence[int], size: Sequence[int]) -> Things:
    """Every thing of instance maps int64 [N, H, W], its mask at `size` (bilinear)."""
    kinds = torch.tensor(things, device=labels.device)
    none, pairs = torch.zeros(0, dtype=torch.int64, device=labels.device), torch.zeros(0, 2, device=labels.device)
    found = [(none, none, torch.zeros(0, *size, device=labels.device), pairs, pairs)]
    for number, label in enumerate(labels):
        ids = label.unique()
        match = (ids // INSTANCES).unsqueeze(1) == kinds  # [ids, kinds]
        ids, which = ids[match.any(1)], match[match.any(1)].int().argmax(1)
        if not len(ids):
            continue
        whole = (label == ids.reshape(-1, 1, 1)).float()
        small = resized(whole.unsqueeze(0), size=size)[0]
        large = (small > 0).flatten(1).any(1)  # a thing may vanish at a quarter of the size
        whole, small, which = whole[large], small[large], which[large]
        seen = small > 0
        area = seen.flatten(1).sum(1)
        lines = [seen.sum(2).float(), seen.sum(1).float()]  # per row, per column
        means = [(line * torch.arange(line.shape[1], device=line.device)).sum(1) / area for line in lines]
        boxes = masks_to_boxes(whole)  # first and last column and row
        spans = (boxes[:, 2:] - boxes[:, :2] + 1).flip(1)
        found.append((torch.full_like(which, number), which, small, torch.stack(means, 1), spans))
    return Things(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def stuff_regions(labels: Tensor, things: Sequence[int], stuff: Sequence[int], size: Sequence[int]) -> Tensor:
    """The share of each place that "some thing" and each stuff class take: float32 [N, 1 + stuff, *size]."""
    table = torch.zeros(max(*things, *stuff) + 2, dtype=torch.int64, device=labels.device)
    table[torch.tensor(stuff, device=labels.device)] = torch.arange(1, 1 + len(stuff), device=labels.device)
    table[-1] = 1 + len(stuff)  # void, dropped below
    kinds = torch.where(labels >= 0, labels // INSTANCES, len(table) - 1)
    whole = functional.one_hot(table[kinds], 2 + len(stuff))[..., :-1].permute(0, 3, 1, 2).float()
    return resized(whole, size=size)


def of_level(things: Things, level: int) -> Things:
    """Those whose size the level answers for."""
    side = things.size.prod(1).sqrt()
    low, high = SCALES[level]
    keep = (side >= low) & (side <= high)
    return Things(*(value[keep] for value in vars(things).values()))


def centre_targets(things: Things, shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """A Gaussian around the centre of each thing: float32 of `shape` [N, kinds, h, w]; the highest counts.

    `size` is that of the masks. The Gaussian's diameter is three deviations.
    """
    batch, kinds, height, width = shape
    target = torch.zeros(batch * kinds, height * width, device=things.masks.device)
    if len(things.image):
        ratio = torch.tensor([height / size[0], width / size[1]], device=target.device)
        middle = (things.centre * ratio).long()
        radius = gaussian_radius(*(things.size * ratio / 4).unbind(1)).clamp(min=0).long().reshape(-1, 1, 1)
        rows = torch.arange(height, device=target.device).reshape(1, -1, 1) - middle[:, 0].reshape(-1, 1, 1)
        columns = torch.arange(width, device=target.device).reshape(1, 1, -1) - middle[:, 1].reshape(-1, 1, 1)
        sigma = (2 * radius + 1) / 3
        bells = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
        bells = torch.where((rows.abs() <= radius) & (columns.abs() <= radius), bells, 0.0)
        where = (things.image * kinds + things.kind).unsqueeze(1).expand(-1, height * width)
        target.scatter_reduce_(0, where, bells.flatten(1), "amax")
    return target.reshape(batch, kinds, height, width)


def gaussian_radius(height: Tensor, width: Tensor) -> Tensor:
    """How far a corner may move for a box to keep `OVERLAP` with the first: the least of the three cases.

    As CornerNet's published code has it, which divides each root by 2 and not by twice the leading
    coefficient; later detectors, PanopticFCN among them, were trained with these radii.
    """
    total, area = height + width, height * width
    cases = (
        (1.0, total, area * (1 - OVERLAP) / (1 + OVERLAP)),
        (4.0, 2 * total, area * (1 - OVERLAP)),
        (4 * OVERLAP, -2 * OVERLAP * total, area * (OVERLAP - 1)),
    )
    roots = [(b + (b**2 - 4 * a * c).sqrt()) / 2 for a, b, c in cases]
    return torch.stack(roots).amin(0)


def thing_kernels(centre: Tensor, kernels: Tensor, things: Things) -> tuple[Tensor, Tensor]:
    """For each thing the kernels at its best scored places inside, and their weights, which sum to 1.

    `centre` logits [N, kinds, h, w], `kernels` [N, C, h, w]; gives float32 [n, k] and [n, k, C].
    """
    height, width = centre.shape[2:]
    inside = resized(things.masks.unsqueeze(1), size=(height, width)).squeeze(1)
    score = centre[things.image, things.kind].sigmoid()
    guided = torch.where(inside > 0.1, score, 0.0).flatten(1)
    best, index = guided.topk(min(POSITIVES, height * width), dim=1)
    weights = best / best.sum(1, keepdim=True).clamp(min=1e-8)
    rows = kernels.flatten(2).transpose(1, 2).index_select(0, things.image)  # [n, P, C]
    return weights, rows.gather(1, index.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def _embedded(generator: torch.nn.Conv2d, kernels: Tensor) -> Tensor:
    """A 1x1 convolution on kernels [..., C]."""
    return functional.linear(kernels, generator.weight.flatten(1), generator.bias)


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sigmoid focal loss with soft targets (arXiv 1708.02002), of the same shape.

    As torchvision's `sigmoid_focal_loss`, which multiplies in another order: enough to make each training another one.
    """
    probability = logits.sigmoid()
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = probability * targets + (1 - probability) * (1 - targets)
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * plain * (1 - right) ** GAMMA


def dice_loss(predicted: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """1 - 2 |p t| / (|p|^2 + |t|^2) over the last dimension, where `known` is 1 (arXiv 1606.04797)."""
    predicted, target = predicted * known, target * known
    size = (predicted**2).sum(-1) + (target**2).sum(-1)
    return 1 - 2 * (predicted * target).sum(-1) / size.clamp(min=1e-8)
