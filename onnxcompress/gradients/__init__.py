"""The backward graph of a network, as ONNX nodes that run wherever the network runs."""
