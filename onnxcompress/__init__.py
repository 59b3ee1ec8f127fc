"""onnxcompress: compress an exported ONNX CNN and prove the result.

    import onnxcompress as oc
    result = oc.compress("model.onnx", data="calibration.npz", target={"macs": 0.6})
    result.model, result.plan, result.report

Names are imported on first use, so that `import onnxcompress` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.analyse.facts import Facts, Need
    from onnxcompress.api import compress, saliency, use
    from onnxcompress.derivation import derive
    from onnxcompress.distillation import Finetuned, distil
    from onnxcompress.errors import (
        BoundError,
        DataError,
        GradientError,
        ModelError,
        OnnxCompressError,
        OutputError,
        PassError,
        ProviderError,
        UsageError,
    )
    from onnxcompress.graph.cost import Cost
    from onnxcompress.graph.editor import Editor
    from onnxcompress.pipeline import Result
    from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
    from onnxcompress.search.results import Family
    from onnxcompress.study import Study

_HOMES = {
    "analyse.facts": ("Facts", "Need"),
    "api": ("compress", "saliency", "use"),
    "derivation": ("derive",),
    "distillation": ("Finetuned", "distil"),
    "errors": (
        "BoundError",
        "DataError",
        "GradientError",
        "ModelError",
        "OnnxCompressError",
        "OutputError",
        "PassError",
        "ProviderError",
        "UsageError",
    ),
    "graph.cost": ("Cost",),
    "graph.editor": ("Editor",),
    "pipeline": ("Result",),
    "plan.contract": ("Candidate", "NoCandidate", "Pass", "Refusal", "Site"),
    "search.results": ("Family",),
    "study": ("Study",),
}

__all__ = [
    "BoundError",
    "Candidate",
    "Cost",
    "DataError",
    "Editor",
    "Facts",
    "Family",
    "Finetuned",
    "GradientError",
    "ModelError",
    "Need",
    "NoCandidate",
    "OnnxCompressError",
    "OutputError",
    "Pass",
    "PassError",
    "ProviderError",
    "Refusal",
    "Result",
    "Site",
    "Study",
    "UsageError",
    "compress",
    "derive",
    "distil",
    "saliency",
    "use",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"onnxcompress.{home}"), name)
    raise AttributeError(f"module 'onnxcompress' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
