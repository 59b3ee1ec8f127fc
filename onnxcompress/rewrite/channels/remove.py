"""Moved to onnxcompress.plan.channels.remove."""

from onnxcompress.plan.channels.remove import remove_channels, zero_channels

__all__ = ["remove_channels", "zero_channels"]
