"""Reading and changing ONNX graphs: view, editor (the only writer), specs, costs, digests."""
