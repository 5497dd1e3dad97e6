# The lazily loaded names of `__init__.py`, for type checkers and editors.

from lion_fast.config import (
    TrainConfig as TrainConfig,
)
from lion_fast.data.images import (
    ImageSet as ImageSet,
)
from lion_fast.data.masks import (
    MaskSet as MaskSet,
)
from lion_fast.data.open import (
    load_image_set as load_image_set,
)
from lion_fast.data.plan import (
    BatchPlan as BatchPlan,
)
from lion_fast.errors import (
    UserError as UserError,
)
from lion_fast.init import (
    LionDGReport as LionDGReport,
    fixup_ as fixup_,
    gradinit_ as gradinit_,
    he_ as he_,
    initialize_ as initialize_,
    lion_dg_ as lion_dg_,
    lion_dg_report as lion_dg_report,
    lion_lsuv_ as lion_lsuv_,
    log_frequencies as log_frequencies,
    lsuv_ as lsuv_,
    prior_bias_ as prior_bias_,
    rezero_ as rezero_,
    whiten_stem_ as whiten_stem_,
    xavier_ as xavier_,
)
from lion_fast.kernels import (
    DenseLosses as DenseLosses,
    HeadLosses as HeadLosses,
    deep_supervision_loss as deep_supervision_loss,
    deep_supervision_loss_ref as deep_supervision_loss_ref,
    dense_supervision_loss as dense_supervision_loss,
    dense_supervision_loss_ref as dense_supervision_loss_ref,
)
from lion_fast.models import (
    DeeplySupervised as DeeplySupervised,
    DenseNetDS as DenseNetDS,
    ResNetDS as ResNetDS,
    UNetDS as UNetDS,
    densenet_ds as densenet_ds,
    resnet_ds as resnet_ds,
    unet_ds as unet_ds,
)
from lion_fast.presets import (
    PRESETS as PRESETS,
)
from lion_fast.training import (
    LoadedRun as LoadedRun,
    Prediction as Prediction,
    Summary as Summary,
    Validation as Validation,
    evaluate as evaluate,
    load_run as load_run,
    predict as predict,
    train as train,
)

from . import (
    arguments as arguments,
    cli as cli,
    config as config,
    data as data,
    errors as errors,
    figures as figures,
    init as init,
    kernels as kernels,
    models as models,
    output as output,
    places as places,
    presets as presets,
    report as report,
    resolutions as resolutions,
    study as study,
    training as training,
    values as values,
)

__version__: str
