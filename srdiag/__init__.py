"""Super-resolution enhanced medical image diagnosis with sample affinity interaction, taught in notebooks.

`enlarge(images, model)` and `diagnose(images, model)` apply a trained model to images of any kind;
`list_pretrained()` names the models that come with the package. For teaching and research, not for
diagnostic use.

Each name is loaded when it is first used, so that `import srdiag` takes a moment and waits for no PyTorch.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING

from .core.moved import MovedFinder, no_such_name

_FACE = { # name: module in which it lives
    # apply a model
    'enlarge': 'models.apply', 'diagnose': 'models.apply', 'load_model': 'models.saving',
    'save_model': 'models.saving', 'ModelInfo': 'models.info', 'list_pretrained': 'core.weights',
    # images, and how good they are
    'read_image': 'data.images', 'save_png': 'data.images', 'tissue': 'data.samples',
    'degrade': 'data.degradation', 'upsample': 'data.degradation',
    'psnr': 'evaluation.image_quality', 'ssim': 'evaluation.image_quality',
    'convention': 'evaluation.image_quality', 'Convention': 'evaluation.image_quality',
    # the networks and the losses of the paper, and the networks that it compares with
    'MRCNet': 'sr.mrcnet', 'SREnhancedDiagnosis': 'diagnosis.network',
    'SampleAffinityInteraction': 'diagnosis.sai',
    'DiagnosisLoss': 'diagnosis.losses', 'RankLoss': 'diagnosis.losses',
    'SampleAffinityConsistencyLoss': 'diagnosis.losses',
    'SampleAffinityRegularizationLoss': 'diagnosis.losses',
    'DistillationLoss': 'sr.distillation', 'create_model': 'sr.zoo', 'list_models': 'sr.zoo',
    # settings of a training
    'RunOptions': 'training.options', 'FrameworkSettings': 'diagnosis.settings', 'SRSettings': 'sr.settings',
    # answers to exercises of the course
    'check': 'show.check',
    # what can go wrong
    'SrdiagError': 'core.errors',
}
_ROOMS = ('core', 'data', 'training', 'evaluation', 'datasets', 'sr', 'peers', 'diagnosis', 'models', 'show',
          'bench', 'commands')

__all__ = [*_FACE]

if TYPE_CHECKING: # the same names for editors and type checkers, which do not run code
    from .core.errors import SrdiagError as SrdiagError
    from .core.weights import list_pretrained as list_pretrained
    from .data.degradation import degrade as degrade, upsample as upsample
    from .data.images import read_image as read_image, save_png as save_png
    from .data.samples import tissue as tissue
    from .diagnosis.losses import (
        DiagnosisLoss as DiagnosisLoss,
        RankLoss as RankLoss,
        SampleAffinityConsistencyLoss as SampleAffinityConsistencyLoss,
        SampleAffinityRegularizationLoss as SampleAffinityRegularizationLoss,
    )
    from .diagnosis.network import SREnhancedDiagnosis as SREnhancedDiagnosis
    from .diagnosis.sai import SampleAffinityInteraction as SampleAffinityInteraction
    from .diagnosis.settings import FrameworkSettings as FrameworkSettings
    from .evaluation.image_quality import (
        Convention as Convention,
        convention as convention,
        psnr as psnr,
        ssim as ssim,
    )
    from .models.apply import diagnose as diagnose, enlarge as enlarge
    from .models.info import ModelInfo as ModelInfo
    from .models.saving import load_model as load_model, save_model as save_model
    from .show.check import check as check
    from .sr.distillation import DistillationLoss as DistillationLoss
    from .sr.mrcnet import MRCNet as MRCNet
    from .sr.settings import SRSettings as SRSettings
    from .sr.zoo import create_model as create_model, list_models as list_models
    from .training.options import RunOptions as RunOptions


def __getattr__(name):
    "What is asked for, loaded now and kept; AttributeError with the nearest names for what there is not"
    from importlib import import_module
    if name in _ROOMS: return import_module(f'.{name}', __name__)
    if name not in _FACE: raise no_such_name(__name__, name, __all__)
    from .core.meanings import explained
    value = globals()[name] = explained(getattr(import_module(f'.{_FACE[name]}', __name__), name))
    return value


def __dir__(): return sorted({*globals(), *__all__, *_ROOMS})


MovedFinder.install()
