"PSNR and SSIM: golden values, agreement with scikit-image, and nothing silent."

import itertools
import math

import pytest
import torch

from srdiag.evaluation.image_quality import Convention, convention, error_map, psnr, ssim, to_y

CONVENTIONS = [
    Convention(*choice)
    for choice in itertools.product(('rgb', 'y_bt601'), (0, 3), (True, False), ('gaussian11', 'uniform7'))
]
TOLD = {'gaussian11': dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False), 'uniform7': {}}


@pytest.fixture(scope='module')
def waves():
    "Two images of 32×40 px that anyone can write down: sines, and sines with an error of cosines"
    y, x = torch.meshgrid(torch.arange(32).double(), torch.arange(40).double(), indexing='ij')
    hr = torch.stack([torch.sin(x / 3 + c) * torch.cos(y / 4 - c) for c in range(3)]) * 0.45 + 0.5
    return hr + 0.04 * torch.cos(x + y / 2), hr


@pytest.fixture(scope='module')
def pair(tile):
    "Real tissue and a noisy version that leaves the range 0..1"
    hr = tile(3, 64) / 255
    return hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0)), hr


def by_skimage(sr, hr, c):
    from skimage.color import rgb2ycbcr
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b, top = sr.double().numpy(), hr.double().numpy(), 1
    if c.quantised:
        a, b = ((x.clip(0, 1) * 255).round() / 255 for x in (a, b))
    if c.colour == 'y_bt601':
        a, b, top = *(rgb2ycbcr(x, channel_axis=0)[:1] for x in (a, b)), 255
    cut = slice(c.crop, -c.crop or None)
    a, b = a[:, cut, cut], b[:, cut, cut]
    return (
        peak_signal_noise_ratio(b, a, data_range=top),
        structural_similarity(a, b, data_range=top, channel_axis=0, **TOLD[c.window]),
    )


@pytest.mark.parametrize(
    'c,db,similarity',
    [
        (Convention(quantised=False), 30.968270, 0.974077),
        (convention(2), 30.954671, 0.974278),
        (convention(4, 'y_bt601'), 32.283758, 0.958822),
        (Convention(quantised=False, window='uniform7'), 30.968270, 0.982666),
        (Convention('y_bt601', 4, True, 'uniform7'), 32.283758, 0.972225),
    ],
    ids=str,
)
def test_golden_values(waves, c, db, similarity):
    assert psnr(*waves, c).item() == pytest.approx(db, abs=1e-6)
    assert ssim(*waves, c).item() == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize('c', CONVENTIONS, ids=str)
def test_agrees_with_scikit_image(pair, c):
    db, similarity = by_skimage(*pair, c)
    assert psnr(*pair, c).item() == pytest.approx(db, abs=1e-6)
    assert ssim(*pair, c).item() == pytest.approx(similarity, abs=1e-6)


def test_grey_agrees_with_scikit_image(pair):
    sr, hr = (x[:1] for x in pair)
    for window in TOLD:
        c = Convention(crop=1, window=window)
        db, similarity = by_skimage(sr, hr, c)
        assert (psnr(sr, hr, c).item(), ssim(sr, hr, c).item()) == pytest.approx((db, similarity), abs=1e-6)


def test_luma_agrees_with_scikit_image(pair):
    from skimage.color import rgb2ycbcr

    hr = pair[1].double()
    assert to_y(hr)[0].numpy() * 255 == pytest.approx(rgb2ycbcr(hr.numpy(), channel_axis=0)[0], abs=1e-9)


def test_each_choice_changes_the_number_and_the_line_above_the_table(pair):
    lines = {str(c) for c in CONVENTIONS}
    assert len(lines) == len(CONVENTIONS)
    scores = {(psnr(*pair, c).item(), ssim(*pair, c).item()) for c in CONVENTIONS}
    assert len(scores) == len(CONVENTIONS)
    assert 'SSIM 7x7 uniform' in convention(2).__class__(window='uniform7').describe()
    assert convention(2).describe(1) == 'grey, 2 px border cropped, 8-bit, SSIM 11x11 Gaussian'


def test_batch_scores_as_its_images(pair):
    sr, hr = (torch.stack([x, x.flip(-1) * 0.5]) for x in pair)
    for c in CONVENTIONS[:4]:
        assert torch.equal(psnr(sr, hr, c), torch.cat([psnr(a, b, c) for a, b in zip(sr, hr)]))
        assert torch.equal(ssim(sr, hr, c), torch.cat([ssim(a, b, c) for a, b in zip(sr, hr)]))


def test_identical_images(pair):
    assert psnr(pair[1], pair[1], convention(2)).item() == math.inf
    assert ssim(pair[1], pair[1], convention(2)).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('score', [psnr, ssim])
@pytest.mark.parametrize(
    'spoil,words',
    [
        (lambda sr, hr: (sr, hr[..., 1:]), 'same size'),
        (lambda sr, hr: ((sr * 255).clamp(0, 255).byte(), hr), 'sr is not a float tensor'),
        (lambda sr, hr: (sr * 255, hr * 255), 'hr runs from'),
        (lambda sr, hr: (sr * 255, hr), 'sr runs from'),
        (lambda sr, hr: (sr[0], hr[0]), 'C×H×W'),
        (lambda sr, hr: (sr.index_fill(2, torch.tensor(9), math.nan), hr), 'sr has'),
        (lambda sr, hr: (sr, hr.index_fill(2, torch.tensor(9), math.nan)), 'hr has'),
        (lambda sr, hr: (sr.index_fill(2, torch.tensor(9), math.inf), hr), 'infinite'),
        (lambda sr, hr: (sr[:, :4, :4], hr[:, :4, :4]), 'must remain'),
    ],
)
def test_refuses_with_a_sentence(pair, score, spoil, words):
    with pytest.raises(ValueError, match=words) as e:
        score(*spoil(*pair), convention(2))
    assert str(e.value).endswith('.')


@pytest.mark.parametrize(
    'choice', [dict(window='gaussian7'), dict(colour='lab'), dict(crop=-1), dict(crop=0.5)]
)
def test_unknown_conventions_are_refused(choice):
    with pytest.raises(ValueError, match='of a convention is'):
        Convention(**choice)


def test_error_map_is_a_smoothed_absolute_error(pair):
    from scipy.ndimage import convolve

    sr, hr = (x.double() for x in pair)
    i = torch.arange(-5, 6).double()
    g = torch.exp(-(i**2) / (2 * 2.0**2))
    window = (g[:, None] * g / g.sum() ** 2).numpy()
    expected = convolve((sr - hr).abs().mean(0).numpy(), window, mode='mirror')
    assert error_map(sr, hr).numpy() == pytest.approx(expected, abs=1e-12)
