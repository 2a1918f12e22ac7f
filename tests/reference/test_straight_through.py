"""The quantisers that tuning learns through: their values, and what passes back through their rounding."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

torch = pytest.importorskip("torch")

from reference.quantisation.levels import Levels  # noqa: E402
from reference.quantisation.quantisers import Affine, LogSqrt2  # noqa: E402
from reference.tuning.straight_through import affine, levels, powers  # noqa: E402


def test_an_affine_quantiser_teaches_through_its_rounding():
    """Forward the quantiser itself; backward as LSQ has it, computed the long way."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 10_000, generator=generator)
    quantiser, scale = Affine(torch.tensor(0.25), torch.tensor(5.0), 4), torch.tensor(0.25, requires_grad=True)
    x.requires_grad_()
    found = affine(quantiser, scale, x)
    found.backward(gradient)

    assert_array_equal(found.detach(), quantiser(x.detach()))
    codes = (x.detach() / 0.25).round()
    kept = codes.clamp(-5, 10)
    inside = codes == kept
    assert 0.01 < 1 - inside.float().mean() < 0.5
    assert_array_equal(x.grad, gradient * inside)
    wanted = (gradient * torch.where(inside, codes - x.detach() / 0.25, kept)).double().sum().item()
    assert scale.grad.item() == pytest.approx(wanted, rel=1e-4)  # floats, summed in another order


def test_levels_are_the_quantiser_s_and_straight_through():
    """As of an even grid: of the input between the first level and the last, of the scale by what rounding changes."""
    x, gradient = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([-9.0, -4.0, -1.0, 0.0, 2.0, 5.0, 9.0, 14.0], dtype=torch.float64)
    quantiser, scale = Levels(torch.tensor(0.125, dtype=torch.float64), steps, 3), torch.tensor(0.125, requires_grad=True)
    found = levels(quantiser, scale, x.requires_grad_())
    found.backward(gradient)

    wanted, units = quantiser(x.detach().double()), x.detach().double() / 0.125
    inside = (units >= -9) & (units <= 14)
    assert 0.01 < 1 - inside.float().mean() < 0.5
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-6)  # float32
    np.testing.assert_allclose(x.grad, gradient * inside, rtol=1e-6)
    change = (gradient * torch.where(inside, wanted / 0.125 - units, wanted / 0.125)).sum().item()
    assert scale.grad.item() == pytest.approx(change, rel=1e-3)  # floats, summed in another order


@pytest.mark.parametrize("last_code_is_zero", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_attention_grid_is_the_quantiser_s(bits, last_code_is_zero):
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) ** 3
    x[:2] = torch.tensor([0.0, 1.0])
    quantiser = LogSqrt2(0.7, bits, last_code_is_zero)
    between = (-2 * (x.double() / 0.7).log2() % 1 - 0.5).abs() < 1e-4  # two codes, which float32 may not tell apart

    found = powers(quantiser, x.requires_grad_())
    found.sum().backward()
    np.testing.assert_allclose(found.detach()[~between], quantiser(x.detach().double())[~between], rtol=1e-6)  # float32
    assert_array_equal(x.grad, torch.ones_like(x))
