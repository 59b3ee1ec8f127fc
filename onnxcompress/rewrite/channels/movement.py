"""Moved."""

import sys as _s

from onnxcompress.plan.channels import movement as _m

_s.modules[__name__] = _m
