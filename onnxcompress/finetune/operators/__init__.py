"""What every ONNX operator computes, in PyTorch: a table by the operator's name."""
