"""Steps: how large, of what, and in which memory."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch: pip install 'onnxcompress[finetune]'")

from onnxcompress.finetune.optimiser import Optimiser  # noqa: E402


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    """A kernel with channels last, a pointwise one, one of each channel, a bias, a number."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 4, 3, 3), (5, 6, 1, 1), (5, 1, 3, 3), (5,), (1, 1, 1, 1)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return [torch.nn.Parameter(value) for value in made]


def descend(held: list[torch.nn.Parameter], steps: int, rate: float = 0.02) -> list[float]:
    """Towards other numbers; the squared distance before every step."""
    wanted, optimiser, losses = parameters(1), Optimiser(held, 0.0), []
    for _ in range(steps):
        loss = sum((a - b.detach()).square().sum() for a, b in zip(held, wanted, strict=True))
        losses.append(float(loss.detach()))
        optimiser.add(torch.autograd.grad(loss, held), 1.0)
        optimiser.step(rate)
    return losses


def test_parameters_themselves_move() -> None:
    held = parameters()
    losses = descend(held, 200)
    assert losses[-1] < 0.05 * losses[0]
    assert [tuple(p.shape) for p in held] == [tuple(p.shape) for p in parameters()]


def test_parts_of_a_batch_add_up() -> None:
    ends = []
    for parts in ([1.0], [0.25, 0.75]):
        held = parameters()
        optimiser = Optimiser(held, 0.0)
        for number in range(5):
            generator = torch.Generator().manual_seed(number)
            slopes = [torch.randn(p.shape, generator=generator) for p in held]
            for share in parts:
                optimiser.add(slopes, share)
            optimiser.step(0.01)
        ends.append([p.detach() for p in held])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0**-3, 2.0**10])
def test_steps_are_shares_of_a_size(factor: float) -> None:
    """The same slopes, whatever their scale, move numbers of other size by the same share."""
    moved = []
    for scale in (1.0, factor):
        held = [torch.nn.Parameter(scale * p.detach()) for p in parameters()]
        before = [p.detach().clone() for p in held]
        optimiser = Optimiser(held, 0.0)
        for number in range(4):
            generator = torch.Generator().manual_seed(number)
            optimiser.add([torch.randn(p.shape, generator=generator) for p in held], 1.0)
            optimiser.step(0.01)
        moved.append([(p.detach() - b) / scale for p, b in zip(held, before, strict=True)])
    for one, other in zip(*moved, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_zeros_move() -> None:
    held = [torch.nn.Parameter(torch.zeros(3))]
    optimiser = Optimiser(held, 0.0)
    for _ in range(3):
        optimiser.add([torch.ones(3)], 1.0)
        optimiser.step(0.1)
    assert (held[0] < -1e-3).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_slopes_that_are_not_finite(wrong: float) -> None:
    """They move nothing, then and later."""
    held, others = parameters(), parameters()
    for number, mine in enumerate((held, others)):
        optimiser = Optimiser(mine, 0.0)
        for slope in (1.0, wrong, 2.0, 3.0):
            if slope == wrong and number:
                continue
            optimiser.add([torch.full(p.shape, slope) for p in mine], 1.0)
            optimiser.step(0.01)
    for one, other in zip(held, others, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_what_depends_on_nothing_stays_and_decay_is_of_weights() -> None:
    held = parameters()
    before = [p.detach().clone() for p in held]
    optimiser = Optimiser(held, 0.5)
    for _ in range(3):
        optimiser.add([None, *(torch.zeros(p.shape) for p in held[1:])], 1.0)
        optimiser.step(0.1)
    shrunk = [float((p.detach() / b).mean()) for p, b in zip(held, before, strict=True)]
    assert shrunk[0] == shrunk[3] == 1
    assert all(0.5 < one < 1 for one in (shrunk[1], shrunk[2], shrunk[4]))
