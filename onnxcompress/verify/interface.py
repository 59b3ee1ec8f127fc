"""Interface equality: what a caller sees of a model must not change.

Names, types, shapes (symbolic dimensions too) and order of inputs and outputs, opset imports,
custom domains, metadata. Initializers that were also inputs with a default (every weight, in old
exports) are not part of the interface: ONNX Runtime lists them apart.
"""

from __future__ import annotations

import onnx


def interface_differences(
    original: onnx.ModelProto, result: onnx.ModelProto, *, converted: bool = False
) -> list[str]:
    """What a caller would see changed, one sentence each; empty when the interface is the same.

    Args:
        original: the model as it was given.
        result: what is to be written.
        converted: whether the result's precision was changed: operators of another precision may
            need a newer opset.
    """
    differences: list[str] = []
    for kind, before, after in (
        ("input", _true_inputs(original), _true_inputs(result)),
        ("output", list(original.graph.output), list(result.graph.output)),
    ):
        names_before, names_after = [v.name for v in before], [v.name for v in after]
        if names_before != names_after:
            differences.append(f"{kind}s are {names_after}, were {names_before}")
            continue
        for old, new in zip(before, after, strict=True):
            if old.type.SerializeToString(deterministic=True) != new.type.SerializeToString(
                deterministic=True
            ):
                differences.append(f"type or shape of {kind} '{old.name}' changed")
    opsets_before = {(o.domain, o.version) for o in original.opset_import}
    # What the model defines itself asks nothing of those who run it.
    own = {f.domain for f in result.functions} - {domain for domain, _ in opsets_before}
    opsets_after = {(o.domain, o.version) for o in result.opset_import if o.domain not in own}
    if opsets_before != opsets_after and not converted:
        differences.append(f"opsets are {sorted(opsets_after)}, were {sorted(opsets_before)}")
    metadata_before = [(p.key, p.value) for p in original.metadata_props]
    metadata_after = [(p.key, p.value) for p in result.metadata_props]
    if metadata_before != metadata_after:
        differences.append("model metadata changed")
    return differences


def _true_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]
