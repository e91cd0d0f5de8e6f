"""Branches of other people's networks: cut where their stages end, saved, loaded, joined and looked into."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from srdiag.core.errors import ModelError
from srdiag.core.weights import without_numbers
from srdiag.data.pairs import LabelledPairs
from srdiag.diagnosis import backbones
from srdiag.diagnosis.backbones import check_backbone, make_branch, register_backbone, start_branch
from srdiag.diagnosis.branches import ResNet18Branch
from srdiag.diagnosis.cutting import Backbone
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.joining import join, single_of
from srdiag.diagnosis.network import SREnhancedDiagnosis, StageInteraction
from srdiag.diagnosis.sai import SampleAffinityInteraction
from srdiag.evaluation.cost import count_flops, count_parameters
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.show.saliency import grad_cam, sanity_check

timm = pytest.importorskip('timm')
SR = dict(channels=4, blocks=1, stages=1)
INFO = dict(title='A model', classes=['a', 'b'], lr_size=[24, 24])


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    monkeypatch.setattr(backbones, '_OWN', {})


class Own(nn.Module):
    def __init__(self, channels, widths=(4, 6, 8, 10)):
        super().__init__()
        ends = zip((channels, *widths), widths)
        self.parts = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b))
                                   for a, b in ends)

    def forward(self, x):
        maps = []
        for part in self.parts:
            maps.append(x := part(x))
        return tuple(maps)


class Skipping(Own):  # its last stage reads the first map, too
    def forward(self, x):
        a, b, c, _ = super().forward(x)
        return a, b, c, self.parts[3](c + nn.functional.adaptive_avg_pool2d(a, 1).mean(1, True))


class Tokens(Own):
    def forward(self, x):
        return [f.flatten(2).transpose(1, 2) for f in super().forward(x)]


def framework(**how):
    torch.manual_seed(0)
    return SREnhancedDiagnosis(2, 2, **(dict(sr=SR, mutual='mean') | how)).eval()


@pytest.mark.parametrize(
    'name',
    ['test_convnext', 'test_resnet', 'test_efficientnet', 'mobilenetv3_small_050', 'edgenext_xx_small',
     'pvt_v2_b0'],
)
def test_the_four_pieces_of_a_timm_network_give_what_the_network_gives(name):
    torch.manual_seed(0)
    network = timm.create_model(name, features_only=True).eval()
    x, maps = torch.rand(2, 3, 64, 96), []
    with torch.no_grad():
        whole, branch = network(x)[-4:], Backbone(network, name).eval()
        f = branch.stem(x)
        for stage in branch.stages:
            maps.append(f := stage(f))
    for f, true, width in zip(maps, whole, branch.widths):
        assert torch.equal(f, true) and f.shape[1] == width


@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v3_small', 'shufflenet_v2_x0_5'])
def test_a_torchvision_network_ends_in_its_own_features(name):
    from torchvision.models import get_model

    torch.manual_seed(0)
    branch = make_branch(f'torchvision/{name}', 3).eval()
    torch.manual_seed(0)
    network, x = get_model(name).eval(), torch.rand(2, 3, 64, 64)
    own = {}
    pool = next(m for m in network.modules() if isinstance(m, nn.Linear))
    pool.register_forward_hook(lambda module, args, out: own.update(x=args[0]))
    with torch.no_grad():
        network(x)
        assert torch.allclose(branch(x), own['x'].flatten(1), atol=1e-5)


def test_a_transformer_that_keeps_channels_last_takes_and_gives_maps():
    torch.manual_seed(0)
    name = 'swin_tiny_patch4_window7_224'
    network = timm.create_model(name, features_only=True, strict_img_size=False, depths=(1, 1, 1, 1)).eval()
    branch, x = Backbone(network, name).eval(), torch.rand(1, 3, 64, 96)
    assert branch.widths == (96, 192, 384, 768)
    with torch.no_grad():
        f = x
        for stage, true in zip(branch.stages, network(x)):
            f = stage(f)
            assert torch.equal(f, true.permute(0, 3, 1, 2))


def test_dropout_stays_different_in_training():
    branch = Backbone(Own(3), 'own')
    x = torch.rand(4, 3, 64, 64)
    a = branch.train()(x)
    assert not torch.allclose(a, branch.eval()(x))  # batch norm follows the mode
    assert copy.deepcopy(branch).eval()(x).equal(branch(x))


def test_small_images_are_enlarged_and_networks_of_one_size_resize():
    branch = Backbone(Own(3), 'own')
    assert branch.stem(torch.rand(1, 3, 8, 16)).shape[2:] == (32, 64)
    assert branch.stem(x := torch.rand(1, 3, 33, 40)) is x
    assert Backbone(Own(3), 'own', size=(64, 64)).stem(x).shape[2:] == (64, 64)


@pytest.mark.parametrize(
    'name, words',
    [
        ('timm/convnext_ato', ['Did you mean', 'timm/convnext_atto']),
        ('convnext_atto', ['timm/convnext_atto']),
        ('torchvision/resnet35', ['torchvision/resnet34']),
        ('timm/hf-hub:owner/name', ['There is no network']),
        ('timm/../resnet18', ['There is no network']),
        ('', ['There is no network']),
        ('timm/nest_tiny', ['3 stages', 'has four']),
        ('timm/hiera_tiny_224', ['tokens B×N×C']),
        ('timm/hrnet_w18_small', ['cannot be cut into stages']),
        ('short', ['3 stages']),
        ('long', ['5 stages']),
        ('tokens', ['tokens B×N×C']),
        ('skipping', ['cannot be cut after its stages']),
    ],
)
def test_what_cannot_be_a_branch_says_why(name, words):
    for own, build in dict(
        short=lambda c: Own(c, (4, 6, 8)),
        long=lambda c: Own(c, (2, 2, 4, 6, 8, 10)),
        tokens=Tokens,
        skipping=Skipping,
    ).items():
        register_backbone(own, build)
    with pytest.raises(ModelError) as e, torch.device('meta'):
        make_branch(name, 3)
    for word in words:
        assert word in str(e.value)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


def test_a_network_that_is_handed_over_and_a_bad_name_are_refused():
    with pytest.raises(ModelError, match='register_backbone'):
        make_branch(Own(3), 3)
    for name in ('', 'a/b', 'resnet18', 3):
        with pytest.raises(ModelError, match='cannot name a network'):
            register_backbone(name, Own)
    with pytest.raises(ModelError, match='needs a function'):
        register_backbone('own', 3)


def test_a_missing_timm_is_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(ModelError, match=r'pip install "srdiag\[timm\]"'):
        make_branch('timm/resnet34', 3)
    with pytest.raises(ModelError, match='There is no network'):
        check_backbone('resnet34')


@pytest.mark.parametrize('sai', [True, False])
def test_equal_widths_are_bit_identical_to_one_number(sai):
    torch.manual_seed(0)
    a = StageInteraction(8, sai)
    torch.manual_seed(0)
    b = StageInteraction((8, 8), sai)
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize('mode', ['batch', 'solo', 'both'])
def test_branches_of_other_widths_exchange(mode):
    sai = SampleAffinityInteraction((6, 10))
    out = sai(torch.rand(4, 6, 8, 8), torch.rand(4, 10, 4, 4), mode)
    assert out.to_sr.shape == (4, 6, 8, 8) and out.to_lr.shape == (4, 10, 4, 4)


PAIRS = [
    dict(backbone='timm/test_convnext'),
    dict(lr_backbone='timm/test_resnet', sr_backbone='timm/test_convnext'),
    dict(lr_backbone='torchvision/mobilenet_v3_small', width=8, sr_stem='3x3s2'),
    dict(backbone='timm/test_resnet', sr_backbone='resnet18', width=8, sai=False),
    dict(backbone='timm/test_convnext', inputs='SR'),
    dict(backbone='own', inputs='LR+ILR', channels=4),
]


@pytest.mark.parametrize('how', PAIRS)
def test_what_is_saved_can_be_loaded(how, tmp_path):
    register_backbone('own', Own)
    model = framework(**how)
    x = torch.rand(3, model.config['channels'], 24, 24)
    if model.mixes:
        model.remember((255 * torch.rand(4, *x.shape[1:])).byte())
    save_model(tmp_path / 'model', model, ModelInfo(**INFO))
    again, _ = load_model(tmp_path / 'model')
    a, b = (predict(m, x, ['a', 'b']).probabilities for m in (model, again))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    cam = grad_cam(again, x)
    assert cam.sr.shape[1:] == (48, 48) and np.isfinite(np.asarray(cam.sr)).all()
    assert count_parameters(again) == count_parameters(model) and count_flops(again, x[:1]) > 0


def test_a_model_of_a_network_that_is_not_registered_says_so(tmp_path):
    register_backbone('own', Own)
    save_model(tmp_path / 'model', framework(backbone='own'), ModelInfo(**INFO))
    backbones._OWN.clear()
    with pytest.raises(ModelError, match="'own'.*register_backbone"):
        load_model(tmp_path / 'model')


def test_claims_are_bounded_and_a_name_is_never_an_address(tmp_path):
    save_model(tmp_path / 'model', framework(backbone='timm/test_resnet'), ModelInfo(**INFO))
    path = tmp_path / 'model' / 'config.json'
    config = json.loads(path.read_text())
    for name in ('timm/convnext_xxlarge', 'timm/hf_hub:a/b', 'timm/https://a', 'torchvision/resnet34', 3,
                 ['a']):
        config['network']['backbone'] = name
        path.write_text(json.dumps(config))
        with pytest.raises(ModelError):
            load_model(tmp_path / 'model')


def test_a_branch_that_was_put_in_by_hand_is_not_saved(tmp_path):
    model = framework()
    model.network.branch_lr = make_branch('torchvision/resnet34', 3)
    with pytest.raises(ModelError, match='nobody could load it again'):
        save_model(tmp_path / 'model', model, ModelInfo(**INFO))
    assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['timm/test_convnext', 'torchvision/mobilenet_v3_small'])
def test_a_file_of_the_library_starts_a_branch(name, channels, tmp_path):
    library, _, own = name.partition('/')
    torch.manual_seed(1)
    if library == 'timm':
        network = timm.create_model(own)
    else:
        network = __import__('torchvision').models.get_model(own)
    torch.save(network.state_dict(), tmp_path / 'weights.pth')
    branch = start_branch(make_branch(name, channels), tmp_path / 'weights.pth')
    known = {(tuple(v.shape), v.double().sum().item()) for v in network.state_dict().values()}
    first = next(iter(branch.state_dict()))
    assert all(
        (tuple(v.shape), v.double().sum().item()) in known
        for k, v in branch.state_dict().items()
        if channels == 3 or k != first
    )


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model('test_convnext').state_dict(), tmp_path / 'w.pth')
    for name in ('timm/test_resnet', 'torchvision/mobilenet_v3_small'):
        branch = make_branch(name, 3)
        state = copy.deepcopy(branch.state_dict())
        with pytest.raises(ModelError):
            start_branch(branch, tmp_path / 'w.pth')
        assert all(torch.equal(v, state[k]) for k, v in branch.state_dict().items())
    with pytest.raises(ModelError, match='no file'):
        start_branch(branch, tmp_path / 'nothing.pth')


def test_a_failed_download_is_a_sentence(monkeypatch):
    def fail(*args):
        raise OSError('no network')

    branch = make_branch('torchvision/mobilenet_v3_small', 3)
    monkeypatch.setattr(backbones, '_vision_weights', fail)
    with pytest.raises(ModelError, match='could not be downloaded.*imagenet:FILE'):
        start_branch(branch)


@pytest.mark.parametrize('how', PAIRS[:4])
def test_the_join_does_no_harm(how):
    model, g = framework(**how, statistics='each'), torch.Generator().manual_seed(0)
    pixels = (255 * torch.rand(16, 3, 48, 48, generator=g)).byte()
    images = LabelledPairs(pixels, torch.arange(16) % 2, 2, 'hr')
    singles = {}
    for branch in ('lr', 'sr'):
        singles[branch] = single_of(model, branch).eval()
        singles[branch].network.fit_statistics(images.lr.float() / 255)
        for m in singles[branch].modules():  # as a training would leave them
            if isinstance(m, nn.BatchNorm2d):
                m.running_var.uniform_(0.5, 2, generator=g)
    joined = join(model, singles['lr'], singles['sr'], images)
    p = predict(joined, images.lr, ['a', 'b'], mode='solo').probabilities
    for branch, single in singles.items():
        alone = predict(single, images.lr, ['a', 'b']).probabilities['ens']
        assert np.abs(p[branch] - alone).max() < 1e-3


def test_a_branch_of_another_network_does_not_join():
    model = framework(lr_backbone='timm/test_resnet', sr_backbone='timm/test_convnext')
    other = framework(inputs='LR', backbone='timm/test_efficientnet', mode='solo')
    images = LabelledPairs(torch.zeros(4, 3, 24, 24, dtype=torch.uint8), torch.arange(4) % 2, 2)
    with pytest.raises(ModelError, match='its network is timm/test_efficientnet, but timm/test_resnet'):
        join(model, other, None, images)


def test_the_sanity_check_randomises_such_a_network():
    model = framework(lr_backbone='timm/test_resnet', sr_backbone='timm/test_convnext')
    assert len(sanity_check(model, torch.rand(3, 3, 24, 24), stage=1)) == 6


def test_the_published_branch_is_untouched():
    torch.manual_seed(0)
    a = make_branch(None, 3)
    torch.manual_seed(0)
    b = ResNet18Branch(3)
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))
    with without_numbers():
        assert type(make_branch('resnet18', 1, '3x3', 8)) is ResNet18Branch


@pytest.mark.parametrize('name', ['timm/efficientnet_b0', 'torchvision/mobilenet_v3_small'])
def test_norms_that_processes_share_forget_nothing(name):
    "timm's batch norms drop and activate as well"
    from srdiag.training.processes import sharing_norms
    if name.startswith('timm'): pytest.importorskip('timm')
    branch, images = make_branch(name, 3).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = branch(images)
        with sharing_norms(branch): assert torch.allclose(branch(images), before, atol=1e-5)


def test_fine_tuning_takes_no_framework_of_another_build(tmp_path):
    from srdiag.models.starting import start_diagnosis
    make = dict(classes=2, scale=2, width=8, mode='solo')
    save_model(tmp_path/'model', SREnhancedDiagnosis(**make), ModelInfo('t', lr_size=[16, 16],
                                                                        classes=['a', 'b']))
    for change, flag in ((dict(backbone='torchvision/resnet18'), '--backbone'), (dict(sai=False), '--no-sai'),
                         (dict(statistics='none'), '--no-standardise'),
                         (dict(gate_norm=False), '--no-gate-norm')):
        with pytest.raises(ModelError, match=flag):
            start_diagnosis(SREnhancedDiagnosis(**make | change), ['a', 'b'], tmp_path/'model')
    start_diagnosis(SREnhancedDiagnosis(**make), ['a', 'b'], tmp_path/'model')


def test_fine_tuning_is_built_like_its_model_unless_something_else_is_asked_for(tmp_path, capsys):
    from srdiag.diagnosis.settings import FrameworkSettings
    from srdiag.models.starting import settings_like
    known = dict(scale=2, inputs='LR+ILR', width=8, statistics='none', lr_backbone='torchvision/resnet18')
    save_model(tmp_path/'model', SREnhancedDiagnosis(2, mode='solo', **known),
               ModelInfo('t', lr_size=[16, 16], classes=['a', 'b']))
    like = settings_like(FrameworkSettings(sai=False), tmp_path/'model')
    assert (like.scale, like.inputs, like.width, like.standardise) == (2, 'LR+ILR', 8, False)
    assert (like.lr_backbone, like.sr_backbone, like.sai) == ('torchvision/resnet18', None, False)
    said = capsys.readouterr().out
    assert '--scale 2' in said and '--no-standardise' in said and '--no-sai' not in said
    assert settings_like(FrameworkSettings(width=4), tmp_path/'model').width == 4
