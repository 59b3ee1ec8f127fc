"""Moved to onnxcompress.plan.channels."""
