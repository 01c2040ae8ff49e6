"""oneDNN's products against torch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch

from recsys.models import linear
from recsys.models.dcnv2 import MatrixCross
from recsys.models.linear import MANY_ROWS, Linear, thin_product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def assert_equal_to_torch(
    layer: torch.nn.Module, x: torch.Tensor, target: torch.Tensor, onednn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients with oneDNN, whose autograd function has this name, and without it."""
    results = []
    for pays in (False, True):
        monkeypatch.setattr(linear, "onednn_pays", lambda p=pays: p)
        layer.zero_grad()
        x.grad = None
        out = layer(x)
        assert (out.grad_fn.name() == onednn) is pays
        (out * target).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 16), (128, 180, 192), (1000, 429, 256), (MANY_ROWS, 60, 33)])
def test_onednn_equals_torch(shape: tuple[int, int, int], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, inputs, outputs = shape
    x, target = torch.randn(rows, inputs, requires_grad=True), torch.randn(rows, outputs)
    assert_equal_to_torch(Linear(inputs, outputs, bias=bias), x, target, "_OnednnLinearBackward", monkeypatch)


@needs_onednn
@pytest.mark.parametrize("rows", [7, MANY_ROWS])
def test_cross_layers_in_onednn_equal_torchs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, target = torch.randn(rows, 33, requires_grad=True), torch.randn(rows, 33)
    assert_equal_to_torch(MatrixCross(33, 3), x, target, "_FullCrossBackward", monkeypatch)


@needs_onednn
def test_onednn_is_exact_to_fp32() -> None:
    """No bf16 or tf32 hides in it: the error against float64 is that of fp32 sums."""
    x, weight = torch.randn(256, 429), torch.randn(256, 429)
    exact = x.double() @ weight.double().T
    assert float((linear.product(x, weight) - exact).abs().max() / exact.abs().max()) < 3e-6


def test_evaluation_uses_torchs_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: True)
    layer, x = Linear(32, 32), torch.randn(4, 32)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.eval()(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@needs_onednn
def test_an_empty_batch_has_empty_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: True)
    layer = Linear(4, 16)
    layer(torch.zeros(0, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_thin_product_is_a_product(outputs: int) -> None:
    x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(thin_product, (x, weight))
    torch.testing.assert_close(thin_product(x, weight), x @ weight.T)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 64])
def test_serving_in_another_precision_uses_torchs_own_product(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: True)
    layer, x = Linear(32, 32), torch.randn(rows, 32)
    expected = torch.nn.functional.linear
    with torch.inference_mode():
        assert layer.double()(x.double()).dtype == torch.float64
        layer.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for given in (x, x.bfloat16()):
                assert torch.equal(layer(given), expected(given, layer.weight, layer.bias))
