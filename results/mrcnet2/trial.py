"""A short trial on one sample image: python trial.py mrcnet2_x2 101. How the rows of trials.csv were made;
their other designs were throw-away code and are described in words only."""
import math
import sys

import torch

from srdiag.data.degradation import degrade
from srdiag.data.samples import tissue
from srdiag.sr.zoo import create_model

STEPS, PATCH, BATCH, RATE = 100, 16, 8, 1e-3 # the patch in low-resolution px


def one_cycle(pos): # 0..1 → rate, momentum
    if pos < 0.2: up = (1 - math.cos(math.pi*pos/0.2))/2
    else: up = (1 + math.cos(math.pi*(pos - 0.2)/0.8))/2
    return (RATE/10 + 0.9*RATE*up if pos < 0.2 else RATE*up), 0.95 - 0.1*up


def patches(lr, hr, scale, draw): # PATCH px each, turned and mirrored
    small, large = [], []
    for _ in range(BATCH):
        i, j = (int(torch.randint(0, n - PATCH + 1, (), generator=draw)) for n in lr.shape[-2:])
        end_i, end_j = i + PATCH, j + PATCH
        pair = [lr[..., i:end_i, j:end_j], hr[..., i*scale:end_i*scale, j*scale:end_j*scale]]
        if torch.rand((), generator=draw) < 0.5: pair = [x.flip(-1) for x in pair]
        turns = int(torch.randint(0, 4, (), generator=draw))
        for images, x in zip((small, large), pair): images.append(x.rot90(turns, (2, 3)))
    return torch.cat(small).contiguous(memory_format=torch.channels_last), torch.cat(large)


def trial(name, seed): # → PSNR of the lower part, largest loss after ten steps
    torch.manual_seed(seed)
    network = create_model(name).to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(seed)
    hr, scale, worst = tissue()[None].float()/255, network.scale, 0
    upper, lower = hr[..., :320, :], hr[..., 320:, :]
    lr_upper, lr_lower = (degrade(x, scale).clamp(0, 1) for x in (upper, lower))
    adam = torch.optim.Adam(network.parameters(), fused=True)
    for step in range(STEPS):
        rate, momentum = one_cycle(step/STEPS)
        for group in adam.param_groups: group.update(lr=rate, betas=(momentum, 0.99))
        small, large = patches(lr_upper, upper, scale, draw)
        with torch.autocast('cpu', torch.bfloat16): out = network(small)
        loss = (out.float() - large).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step > 10: worst = max(worst, loss.item())
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): out = network.eval()(
        lr_lower.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)
    error = (out - lower)[..., scale:-scale, scale:-scale].square().mean().item()
    return -10*math.log10(error), worst


if __name__ == '__main__':
    torch.set_num_threads(1)
    name, seed = sys.argv[1], int(sys.argv[2])
    print('%s, seed %d: %.3f dB, largest loss %.4f' % (name, seed, *trial(name, seed)))
