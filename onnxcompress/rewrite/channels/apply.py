"""Moved."""

import sys as _s

from onnxcompress.graph import editing as _m

_s.modules[__name__] = _m
