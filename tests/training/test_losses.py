"""Several heads' losses, and hard pixels by their probability."""

import math

import pytest
import torch
from torch.nn import functional

from segforge.config.recipe import Loss
from segforge.training.losses import training_loss

VOID = 255


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 4, 12, 16, generator=generator)
    labels = torch.randint(0, 4, (2, 12, 16), generator=generator)
    labels[:, :2] = VOID
    return logits, labels


def loss_of(logits: torch.Tensor | list[torch.Tensor], labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    return training_loss(logits, labels, loss, void=VOID, weights=None, progress=1.0)


def test_auxiliary_logits_count_by_their_weight_at_any_size() -> None:
    logits, labels = batch()
    auxiliary = [torch.randn(2, 4, 3, 4), torch.randn(2, 4, 6, 8)]
    found = loss_of([logits, *auxiliary], labels, Loss(auxiliary_weight=0.4))
    alone = [loss_of(one, labels, Loss()) for one in (logits, *auxiliary)]
    torch.testing.assert_close(found, alone[0] + 0.4 * (alone[1] + alone[2]))
    torch.testing.assert_close(loss_of([logits], labels, Loss()), alone[0])


@pytest.mark.parametrize("name", ["ohem", "ohem_threshold"])
def test_hard_pixels_are_chosen_per_head(name: str) -> None:
    logits, labels = batch()
    other = batch(1)[0]
    loss = Loss(name=name, auxiliary_weight=1.0)
    torch.testing.assert_close(
        loss_of([logits, other], labels, loss), loss_of(logits, labels, loss) + loss_of(other, labels, loss)
    )


@pytest.mark.parametrize("threshold", [0.1, 0.7, 0.99])
def test_pixels_below_the_probability_count(threshold: float) -> None:
    logits, labels = batch()
    losses = functional.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")[labels != VOID]
    hard = losses[losses > -math.log(threshold)]
    assert len(losses) / 16 < len(hard) < len(losses)
    found = loss_of(logits, labels, Loss(name="ohem_threshold", ohem_threshold=threshold))
    torch.testing.assert_close(found, hard.mean())


def test_a_sure_network_still_learns_from_the_least_share() -> None:
    _, labels = batch()
    known = labels != VOID
    logits = 8 * functional.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2).float()
    logits[:, :, 5] += torch.linspace(0, 1, 16)  # the same class, a little differently sure
    logits = (logits + 0.1 * torch.rand(logits.shape, generator=torch.Generator().manual_seed(2))).requires_grad_()
    losses = functional.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
    assert losses.max() < -math.log(0.7)
    least = math.ceil(int(known.sum()) / 16)
    found = loss_of(logits, labels, Loss(name="ohem_threshold"))
    torch.testing.assert_close(found, losses[known].topk(least).values.mean())
    found.backward()
    assert logits.grad is not None
    assert int((logits.grad.abs().sum(1) > 0).sum()) == least


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["cross_entropy", "ohem", "ohem_threshold"])
def test_void_alone_gives_zero(name: str, smoothing: float) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    found = loss_of(logits, torch.full_like(labels, VOID), Loss(name=name, label_smoothing=smoothing))
    assert found == 0
    found.backward()
    assert logits.grad is not None
    assert not logits.grad.any()
