"""The passes that come with onnxcompress, one per module, registered through entry points."""
