"""What one sample of a dataset looks like."""

from __future__ import annotations

from onnxcompress.calibrate.dataset import Dataset


def sample_sizes(data: Dataset) -> dict[str, tuple[int, ...]]:
    """The size of every input for the first batch of one sample (or of the fixed batch).

    Raises:
        DataError: the sample does not fit the model.
    """
    feeds, _ = next(iter(data.batches(1)))
    return {name: tuple(int(d) for d in value.shape) for name, value in feeds.items()}
