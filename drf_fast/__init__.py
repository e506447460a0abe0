"""drf_fast: train and certify provably robust image classifiers by randomized smoothing.

Everything public is here by name and imported on first use, so that ``import drf_fast`` costs
nothing and the command line answers before torch is loaded. Start reading at
``drf_fast/functional.py``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drf_fast.runtime import forking as _forking  # noqa: F401  its hook, before anyone forks
from drf_fast.version import __version__

if TYPE_CHECKING:
    from drf_fast.adversary import AttackResult, attack
    from drf_fast.backends.dispatch import use as use_backend
    from drf_fast.balls import HardBall, SoftBall
    from drf_fast.certification.classifier import SmoothedClassifier
    from drf_fast.certification.dataset import DatasetCertificates, certify_dataset
    from drf_fast.certification.result import CertifyResult
    from drf_fast.checkpoints.runs import TrainedRun, load_run
    from drf_fast.functional import (
        adversary_step,
        certified_radius,
        clopper_pearson_lower,
        consistency_loss,
        macer_loss,
        noise_key,
        noisy_repeat,
        smooth_ce,
        vote,
    )
    from drf_fast.levels import noisy_levels
    from drf_fast.models.faster import faster
    from drf_fast.nn import ConsistencyLoss, MacerLoss, SmoothCELoss

_HOME = {
    "adversary_step": "functional",
    "certified_radius": "functional",
    "clopper_pearson_lower": "functional",
    "consistency_loss": "functional",
    "macer_loss": "functional",
    "noise_key": "functional",
    "noisy_levels": "levels",
    "noisy_repeat": "functional",
    "smooth_ce": "functional",
    "vote": "functional",
    "AttackResult": "adversary",
    "HardBall": "balls",
    "SoftBall": "balls",
    "attack": "adversary",
    "faster": "models.faster",
    "CertifyResult": "certification.result",
    "ConsistencyLoss": "nn",
    "MacerLoss": "nn",
    "SmoothCELoss": "nn",
    "SmoothedClassifier": "certification.classifier",
    "DatasetCertificates": "certification.dataset",
    "TrainedRun": "checkpoints.runs",
    "certify_dataset": "certification.dataset",
    "load_run": "checkpoints.runs",
    "use_backend": "backends.dispatch",
}

__all__ = [
    "AttackResult",
    "CertifyResult",
    "ConsistencyLoss",
    "DatasetCertificates",
    "HardBall",
    "MacerLoss",
    "SmoothCELoss",
    "SmoothedClassifier",
    "SoftBall",
    "TrainedRun",
    "__version__",
    "adversary_step",
    "attack",
    "certified_radius",
    "certify_dataset",
    "clopper_pearson_lower",
    "consistency_loss",
    "faster",
    "load_run",
    "macer_loss",
    "noise_key",
    "noisy_levels",
    "noisy_repeat",
    "smooth_ce",
    "use_backend",
    "vote",
]


# Folders and files that examples and the documentation name after `import drf_fast` alone.
_MODULES = ("data", "errors", "functional", "models", "nn")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"drf_fast.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'drf_fast' has no attribute {name!r}")
    module = importlib.import_module(f"drf_fast.{home}")
    value = getattr(module, "use" if name == "use_backend" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
