"""The user's own metric: found by name, given the outputs by name, and named where it fails."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.comparison import Comparison
from onnxcompress.verify.metrics import Metric, parse_metric


def positive_only(outputs, labels):
    return outputs["y"][outputs["y"] > 0]


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "verify_user_metric.py").write_text(
        "import numpy as np\n"
        "def closeness(outputs, labels):\n"
        "    return 1 - np.abs(outputs['q'][:, 0] - labels)\n"
        "def fails(outputs, labels):\n"
        "    raise RuntimeError('no such\\nthing')\n"
        "def mean(outputs, labels):\n"
        "    return outputs['q'].mean()\n"
        "def short(outputs, labels):\n"
        "    return outputs['q'][1:, 0]\n"
        "def undefined(outputs, labels):\n"
        "    return outputs['q'][:, 0] * np.nan\n"
        "def text(outputs, labels):\n"
        "    return ['good', 'bad', 'ugly']\n"
        "constant = 3\n"
    )
    (tmp_path / "verify_broken_module.py").write_text("raise ValueError('half\\ninstalled')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("user_module")
def test_user_metric_gets_outputs_by_name():
    metric = parse_metric("verify_user_metric:closeness")
    p, q = np.full((3, 1), 9.0), np.array([[0.0], [0.5], [2.0]])
    found = metric.scores([p, q], np.array([0.0, 1.0, 1.5]), names=["p", "q"])
    assert found.tolist() == [1.0, 0.5, 0.5]
    assert found.dtype == np.float64
    assert not metric.needs_labels


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("function", ["fails", "mean", "short", "undefined", "text"])
@pytest.mark.parametrize("labels", [None, np.zeros(3)])
def test_failing_user_metrics_are_named(function, labels):
    metric = parse_metric(f"verify_user_metric:{function}")
    with pytest.raises(DataError, match=f"verify_user_metric:{function}") as caught:
        metric.scores([np.ones((3, 1))], labels, names=["q"])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    "text",
    [
        "top2",
        "",
        ":",
        "math:",
        ":sqrt",
        "verify_user_metric:absent",
        "verify_user_metric:constant",
        "verify_no_such_module:f",
        "verify_broken_module:f",
    ],
)
def test_unknown_metrics_are_refused(text):
    with pytest.raises(UsageError, match="metric") as caught:
        parse_metric(text)
    assert "\n" not in str(caught.value)


def test_user_metric_must_score_both_networks_alike():
    metric = Metric("m:f", positive_only)
    comparison = Comparison(metric, ["y"], seed=0)
    with pytest.raises(DataError, match="m:f gave scores of shape"):
        comparison.accumulate([np.ones(3)], [np.array([1.0, 0.0, 1.0])])
    outputs = [np.ones((3, 1)), np.zeros(())]  # no shared extent: only the pairing can be checked
    candidate = [np.array([[1.0], [0.0], [1.0]]), np.zeros(())]
    comparison = Comparison(metric, ["y", "z"], seed=0)
    with pytest.raises(DataError, match="gave 3 scores before and 2 after"):
        comparison.accumulate(outputs, candidate)
