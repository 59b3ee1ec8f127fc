"""Moved."""

import sys as _s

from onnxcompress.graph import edits as _m

_s.modules[__name__] = _m
