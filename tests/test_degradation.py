"`degrade` is MATLAB's imresize: held to a float64 matrix model that shares nothing with it."

import numpy as np
import pytest
import torch

from srdiag.data.degradation import crop_to_multiple, degrade, upsample

scales = pytest.mark.parametrize('s', [2, 3, 4, 8])


def weights(n_in, n_out, a=-0.5):
    """The n_out×n_in matrix of MATLAB's bicubic: kernel widened when shrinking, image mirrored with the edge
    pixel repeated"""
    step = n_in / n_out
    wide = max(step, 1.0)
    reach = 2 * int(np.ceil(wide)) + 1
    centre = step * (np.arange(n_out)[:, None] + 0.5) - 0.5
    tap = np.floor(centre).astype(int) + np.arange(-reach, reach + 1)
    x = np.abs(centre - tap) / wide
    k = np.where(
        x <= 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0)
    )
    k /= k.sum(1, keepdims=True)
    tap = tap % (2 * n_in)
    tap = np.where(tap < n_in, tap, 2 * n_in - 1 - tap)
    A = np.zeros((n_out, n_in))
    np.add.at(A, (np.repeat(np.arange(n_out), tap.shape[1]), tap.ravel()), k.ravel())
    return A


def model(x, h, w):
    return np.einsum('ij,...jk,lk->...il', weights(x.shape[-2], h), x.numpy(), weights(x.shape[-1], w))


def noise(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@scales
@pytest.mark.parametrize('h,w', [(5, 7), (6, 9), (1, 1), (2, 3), (13, 4)])
def test_degrade_is_the_matrix_model(s, h, w):
    hr = noise(2, 3, h * s, w * s)
    assert np.abs(degrade(hr, s, clip=False).numpy() - model(hr, h, w)).max() < 1e-12


@scales
@pytest.mark.parametrize('h,w', [(5, 7), (6, 9), (1, 2)])
def test_upsample_is_the_matrix_model(s, h, w):
    lr = noise(2, 3, h, w)
    assert np.abs(upsample(lr, s).numpy() - model(lr, h * s, w * s)).max() < 1e-12


@scales
def test_real_tissue_in_single_precision(s, tile):
    hr = tile(5, 128)[..., :96, :120] / 255
    assert np.abs(degrade(hr, s).numpy() - model(hr.double(), 96 // s, 120 // s).clip(0, 1)).max() < 2e-6


def test_known_numbers():
    "Halving a step edge, by hand: weights (-3, -9, 29, 111, 111, 29, -9, -3)/256"
    step = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=torch.float64).expand(1, 2, 12)
    assert degrade(step, 2, clip=False)[0, 0].tolist() == pytest.approx(
        [0, -3 / 256, 17 / 256, 239 / 256, 259 / 256, 1], abs=1e-12
    )


@pytest.mark.parametrize('s,h,w', [(2, 51, 64), (3, 64, 63), (4, 50, 64), (8, 64, 60), (4, 3, 64)])
def test_sides_that_do_not_divide_are_refused(s, h, w):
    with pytest.raises(ValueError, match=f'divisible by {s}, but got {h}×{w}: use crop_to_multiple'):
        degrade(noise(3, h, w), s)


@scales
def test_crop_keeps_the_top_left_corner(s):
    hr = noise(3, 50 + s - 1, 67)
    cut = crop_to_multiple(hr, s)
    h, w = (50 + s - 1) // s, 67 // s
    assert cut.shape == (3, h * s, w * s) and torch.equal(cut, hr[:, : h * s, : w * s])
    assert np.abs(degrade(cut, s, clip=False).numpy() - model(cut, h, w)).max() < 1e-12


def test_bytes_are_refused():
    with pytest.raises(ValueError, match='as_float'):
        degrade(torch.zeros(3, 8, 8, dtype=torch.uint8), 2)


def test_pillow_differs_by_rounding_inside_and_by_the_border(tile):
    from PIL import Image

    hr = tile(5, 128)
    pil = np.asarray(
        Image.fromarray(hr.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    ).transpose(2, 0, 1)
    ours = (degrade(hr.double() / 255, 4) * 255).numpy()
    assert np.abs(ours - pil)[:, 2:-2, 2:-2].max() < 1.01
