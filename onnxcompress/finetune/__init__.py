"""Fine-tuning of ONNX models: the graph run in PyTorch, trained, and its weights written back.

Needs the extra `finetune` (PyTorch). Nothing else of onnxcompress imports this package before it
is asked for.
"""
