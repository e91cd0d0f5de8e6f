"Our networks in tools of others: spandrel's loader, torchvision's and MONAI's transforms."
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from srdiag.core.errors import DataError, ModelError
from srdiag.core.weights import pretrained_folder
from srdiag.data.images import to_uint8
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.models.for_torchvision import Enlarge, enlarging_network
from srdiag.models.info import ModelInfo
from srdiag.models.saving import load_model, save_model
from srdiag.sr.inference import super_resolve
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.zoo import create_model

SHIPPED = 'histology_x2', 'endoscopy_x4'


def scales(): # those that the networks of this version have
    for scale in (2, 3, 4, 8):
        try: yield MRCNet(scale, channels=4).scale
        except ValueError: pass


# spandrel

def spandrel():
    pytest.importorskip('spandrel')
    from srdiag.models import for_spandrel
    return for_spandrel


def loader(own=True): # with a registry of its own, or the one of all loaders
    from spandrel import MAIN_REGISTRY, ModelLoader
    registry = MAIN_REGISTRY.copy() if own else MAIN_REGISTRY
    spandrel().install(registry)
    return ModelLoader(registry=registry)


def difference(descriptor, network, lr):
    ours = super_resolve(network, lr, precision='fp32')
    theirs = descriptor(lr[None])[0]
    assert theirs.shape == ours.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize('name', SHIPPED)
@pytest.mark.parametrize('own', [True, False])
def test_shipped_weights_enlarge_in_spandrel_as_in_ours(name, own, tmp_path):
    file = spandrel().save_for_spandrel(name, tmp_path/'one.safetensors')
    lr = torch.rand(3, 33, 40)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = loader(own).load_from_file(file)
    network, _ = load_model(name)
    assert model.scale == network.scale and model.architecture.id == 'MRCNet' and model.purpose == 'SR'
    assert model.input_channels == model.output_channels == 3
    assert difference(model, network, lr) < 1e-5


@pytest.mark.parametrize('name', SHIPPED)
def test_weights_of_a_model_folder_say_that_they_do_not_say_all(name):
    spandrel()
    with pytest.warns(UserWarning, match='do not say which'):
        model = loader().load_from_file(pretrained_folder(name)/'model.safetensors')
    assert difference(model, load_model(name)[0], torch.rand(3, 17, 24)) < 1e-5


def test_weights_that_never_recursed_are_known_to_be_of_one_step():
    spandrel()
    network = MRCNet(2, channels=8)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loader().load_from_state_dict(network.state_dict())


@pytest.mark.parametrize('scale', scales())
@pytest.mark.parametrize('config', [
    dict(), dict(steps=3), dict(image_channels=1), dict(steps=2, image_channels=1, skip='nearest'),
    dict(modules=3), dict(lstm=False, steps=2), dict(rcf=False, skip='bilinear'),
    dict(trunk=False, peepholes=False), dict(stages=2, blocks=1, channels=12)], ids=str)
def test_every_mrcnet_is_found_from_its_tensors(scale, config, tmp_path):
    for_spandrel = spandrel()
    network = MRCNet(**dict(channels=8) | config | dict(scale=scale)).eval()
    for m in network.modules(): # untrained, the context and the recursion would have no effect
        if hasattr(m, 'value'): torch.nn.init.normal_(m.value[-1].weight)
        if isinstance(m, torch.nn.ParameterDict): [torch.nn.init.normal_(p) for p in m.values()]
    save_model(tmp_path/'model', network, ModelInfo('Untrained'))
    file = for_spandrel.save_for_spandrel(tmp_path/'model', tmp_path/'a.safetensors')
    model = loader().load_from_file(file)
    assert model.model.config == network.config
    lr = torch.rand(network.config['image_channels'], 19, 24)
    assert difference(model, network, lr) < 1e-5


def test_small_and_large_images_and_bfloat16(monkeypatch):
    for_spandrel = spandrel()
    network = MRCNet(2, channels=8).eval()
    model = loader().load_from_state_dict(network.state_dict() | for_spandrel.marks_of(network))
    assert model(torch.rand(1, 3, 3, 5)).shape == (1, 3, 6, 10)
    lr = torch.rand(3, 530, 530)
    assert difference(model, network, lr) < 1e-5
    full = model(lr[None, :, :32, :32])
    half = model.to(torch.bfloat16)(lr[None, :, :32, :32].bfloat16())
    assert half.dtype == torch.bfloat16 and (half.float() - full).abs().max() < 0.05


def test_other_weights_are_left_to_others():
    for_spandrel = spandrel()
    for name in ('edsr_baseline_x2', 'carn_x4', 'srrfn_x2', 'vdsr_x2'):
        assert not for_spandrel.is_mrcnet(create_model(name).state_dict())
    assert not for_spandrel.is_mrcnet({}) and not for_spandrel.is_mrcnet({'head.0.0.weight': 'text'})
    from spandrel import UnsupportedModelError
    with pytest.raises(UnsupportedModelError): loader().load_from_state_dict({'a': torch.zeros(1)})


def test_what_cannot_be_written_for_spandrel_is_refused(tmp_path):
    for_spandrel = spandrel()
    save_model(tmp_path/'edsr', create_model('edsr_baseline_x2', channels=8, blocks=1), ModelInfo('EDSR'))
    with pytest.raises(ModelError, match='holds no MRC-Net but EDSR'):
        for_spandrel.save_for_spandrel(tmp_path/'edsr', tmp_path/'a.safetensors')
    with pytest.raises(ModelError, match='one for sr is needed'):
        for_spandrel.save_for_spandrel('redcells_x4', tmp_path/'a.safetensors')
    with pytest.raises(DataError, match='the folder .*gone does not exist'):
        for_spandrel.save_for_spandrel('histology_x2', tmp_path/'gone'/'a.safetensors')
    assert not (tmp_path/'a.safetensors').exists()


def test_a_disk_that_is_full_leaves_no_half_of_a_file_for_spandrel(tmp_path, monkeypatch):
    from safetensors import SafetensorError
    for_spandrel = spandrel()

    def full(weights, path):
        path.write_bytes(b'half')
        raise SafetensorError('No space left on device')
    monkeypatch.setattr(for_spandrel, 'save_file', full)
    with pytest.raises(ModelError, match='No space left'):
        for_spandrel.save_for_spandrel('histology_x2', tmp_path/'a.safetensors')
    assert not list(tmp_path.iterdir())


# torchvision

@pytest.fixture(scope='module')
def network():
    return load_model('histology_x2')[0]


def test_images_of_all_kinds_are_those_of_super_resolve(network):
    enlarge, lr = Enlarge(network), torch.rand(3, 16, 20)
    sr = super_resolve(network, lr)
    assert torch.equal(enlarge(lr), sr)
    assert torch.equal(enlarge(to_uint8(lr)), super_resolve(network, to_uint8(lr), dtype=torch.uint8))
    assert type(enlarge(tv_tensors.Image(lr))) is tv_tensors.Image
    video = enlarge(tv_tensors.Video(torch.stack([lr, lr.flip(-1)])))
    assert type(video) is tv_tensors.Video and torch.equal(video[0].as_subclass(torch.Tensor), sr)
    pil = enlarge(Image.fromarray(to_uint8(lr).permute(1, 2, 0).numpy()))
    assert pil.size == (40, 32)
    assert torch.equal(v2.functional.pil_to_tensor(pil), enlarge(to_uint8(lr)))
    grey = enlarge(tv_tensors.Image(lr[:1]))
    assert grey.shape == (1, 32, 40)


@pytest.mark.parametrize('form', ['XYXY', 'XYWH', 'CXCYWH'])
def test_boxes_of_each_form_are_multiplied(network, form):
    numbers = torch.tensor([[1., 2, 9, 12], [0, 0, 20, 16]])
    out = Enlarge(network)(dict(a=tv_tensors.Image(torch.rand(3, 16, 20)), b=tv_tensors.BoundingBoxes(
        numbers, format=form, canvas_size=(16, 20))))['b']
    assert torch.equal(out.as_subclass(torch.Tensor), 2*numbers)
    assert out.canvas_size == (32, 40) and out.format.name == form


@pytest.mark.parametrize('mask', [
    torch.randint(0, 5, (16, 20), dtype=torch.uint8), torch.rand(3, 16, 20) > 0.5,
    torch.randint(0, 999, (1, 16, 20))], ids=['uint8', 'bool', 'int64'])
def test_masks_take_the_nearest_value(network, mask):
    sample = tv_tensors.Image(torch.rand(3, 16, 20)), tv_tensors.Mask(mask), 7, 'name', torch.tensor(3)
    image, out, *rest = Enlarge(network)(*sample)
    wanted = mask.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert type(out) is tv_tensors.Mask and out.dtype == mask.dtype
    assert torch.equal(out.as_subclass(torch.Tensor), wanted) and rest == [7, 'name', torch.tensor(3)]


def test_parts_of_different_size_and_values_that_are_none_are_refused(network):
    image, large = tv_tensors.Image(torch.rand(3, 16, 20)), tv_tensors.Mask(torch.zeros(32, 40))
    for wrong, said in ((dict(a=image, b=large), 'different sizes'),
                        (dict(a=torch.rand(3, 8, 8), b=large), 'different sizes'),
                        (image*255, 'floats lie in'), (torch.rand(4, 16, 16), '3×H×W is needed'),
                        (torch.rand(3, 4, 40), 'at least 8 px')):
        with pytest.raises(DataError, match=said): Enlarge(network)(wrong)


def test_a_model_that_enlarges_nothing_is_refused():
    with pytest.raises(ModelError, match='enlarges nothing'):
        Enlarge(SREnhancedDiagnosis(classes=2, scale=2, inputs='LR', width=8))
    assert enlarging_network('redcells_x4').scale == 4
    with pytest.raises(ModelError): Enlarge('histology_x9')


class Tiles(torch.utils.data.Dataset):
    def __init__(self, transform): self.transform = transform
    def __len__(self): return 2
    def __getitem__(self, k): return self.transform(torch.full((3, 16, 16), k/2))


@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_workers_get_the_same_image(network, how):
    loader = DataLoader(Tiles(Enlarge(network)), num_workers=1, multiprocessing_context=how)
    for k, x in enumerate(loader):
        sr = super_resolve(network, torch.full((3, 16, 16), k/2))
        torch.testing.assert_close(x[0], sr, atol=1e-3, rtol=0)


# MONAI

def monai():
    pytest.importorskip('monai')
    from srdiag.models import for_monai
    return for_monai


def test_monai_keeps_the_kind_and_moves_the_affine(network):
    from_monai = monai()
    from monai.data import MetaTensor
    from monai.transforms import Resize
    transform, lr = from_monai.SuperResolve(network), torch.rand(3, 16, 20)
    sr = super_resolve(network, lr)
    assert torch.equal(transform(lr), sr)
    np.testing.assert_array_equal(transform(lr.numpy()), sr.numpy())
    assert transform((lr.numpy()*65535).astype(np.uint16)).dtype == np.uint16
    for affine in (torch.diag(torch.tensor([-0.5, 0.25, 3, 1.])).double(), torch.rand(4, 4).double(),
                   torch.diag(torch.tensor([2., 3, 1])).double()):
        # copies: fastai lets images that are made from one tensor share their notes
        image = MetaTensor(lr.clone(), affine=affine, meta=dict(name='a'))
        image.applied_operations = [dict(id=1)]
        spacing, out = image.pixdim, transform(image)
        assert isinstance(out, MetaTensor) and torch.equal(out.as_tensor(), sr)
        assert out.meta['name'] == 'a' and out.applied_operations == [dict(id=1)]
        wanted = Resize((32, 40))(MetaTensor(lr.clone(), affine=affine)).affine
        if len(affine) == 4: assert torch.allclose(out.affine, wanted)
        assert torch.allclose(out.pixdim, spacing/2) and torch.equal(image.affine, affine)


def test_monai_dictionaries(network):
    from_monai = monai()
    from monai.data import MetaTensor
    affine = torch.diag(torch.tensor([0.5, 0.5, 1, 1.])).double()
    label = torch.randint(0, 4, (1, 16, 20))
    sample = dict(image=MetaTensor(torch.rand(3, 16, 20), affine=affine), other='x',
                  label=MetaTensor(label, affine=affine), plain=label.numpy())
    transform = from_monai.SuperResolved(['image', 'label', 'plain'], network, ['sr', 'nearest', 'nearest'])
    out = transform(sample)
    wanted = label.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(out['label'].as_tensor(), wanted) and (out['plain'] == wanted.numpy()).all()
    assert torch.equal(out['label'].affine, out['image'].affine) and out['other'] == 'x'
    assert sample['image'].shape == (3, 16, 20) and torch.equal(sample['label'].affine, affine)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy(sample)['image'].as_tensor(), out['image'].as_tensor())
    with pytest.raises(KeyError): transform(dict(image=sample['image']))
    some = from_monai.SuperResolved(['image', 'label'], network, allow_missing_keys=True)
    assert some(dict(image=sample['image']))['image'].shape == (3, 32, 40)


def test_what_monai_hands_over_and_no_network_reads(network):
    from_monai = monai()
    transform = from_monai.SuperResolve(network)
    for wrong, said in ((torch.rand(1, 8, 8, 8), 'A volume'), (np.random.rand(1, 8, 8, 8), 'A volume'),
                        (torch.rand(3, 16, 16)*900, 'floats lie in'), (torch.rand(16, 16), 'is needed')):
        with pytest.raises(DataError, match=said): transform(wrong)
    with pytest.raises(ValueError, match='sr or nearest'): from_monai.SuperResolved('a', network, 'cubic')


# without the extras

@pytest.mark.parametrize('library', ['spandrel', 'monai'])
def test_a_missing_extra_is_named_with_its_pip_line(library, monkeypatch):
    for name in [m for m in sys.modules if m == library or m.startswith(f'{library}.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f'srdiag.models.for_{library}', raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'srdiag\[{library}\]'\."):
        __import__(f'srdiag.models.for_{library}')
