"""Kernels against formulas, against torch's own optimizers and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.table import (
    FbgemmTable,
    RowAverage,
    Table,
    TableOptimizer,
    TorchTable,
    fbgemm_available,
    sum_by_row,
)

ROWS, WIDTH = 50, 8
needs_fbgemm = pytest.mark.skipif(not fbgemm_available(), reason="fbgemm-gpu is not installed")


def filled(table: Table) -> Table:
    table.initialise(0.05, torch.Generator().manual_seed(1))
    return table.train()


def batches(steps: int, n: int = 200) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(7)
    return [
        (torch.randint(0, ROWS, (n,), generator=g, dtype=torch.int32), torch.randn(n, WIDTH, generator=g))
        for _ in range(steps)
    ]


def run(table: Table, steps: int = 5, rate: float = 0.1) -> Tensor:
    """Trains on sum(embedding * target); returns the weights."""
    for rows, target in batches(steps):
        if isinstance(table, FbgemmTable):
            table.set_learning_rate(rate)
        (table(rows) * target).sum().backward()
        table.step(rate)
    return table.weights().clone()


def dense_gradient(rows: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(ROWS, WIDTH).index_add_(0, rows.long(), target)


def test_sum_by_row_equals_index_add() -> None:
    rows, grad = batches(1)[0]
    unique, sums = sum_by_row(rows, grad)
    assert unique.tolist() == sorted(set(rows.tolist()))
    torch.testing.assert_close(sums, dense_gradient(rows, grad)[unique.long()])


def test_forward_gathers_rows() -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer("sgd")))
    rows = torch.tensor([3, 3, 49, 0], dtype=torch.int32)
    assert torch.equal(table(rows).detach(), table.weights()[rows.long()])


def test_sgd_equals_the_dense_formula() -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer("sgd")))
    expected = table.weights().clone()
    for rows, target in batches(5):
        expected -= 0.1 * dense_gradient(rows, target)
    torch.testing.assert_close(run(table), expected)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rowwise_adagrad_equals_the_dense_formula(l2: float) -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer("rowwise_adagrad", eps=1e-8, l2=l2)))
    expected, momentum = table.weights().clone(), torch.zeros(ROWS)
    for rows, target in batches(5):
        gradient = dense_gradient(rows, target)
        touched = rows.long().unique()
        gradient[touched] += l2 * expected[touched]
        momentum += gradient.square().mean(1)
        expected -= 0.1 * gradient / (momentum.sqrt() + 1e-8).unsqueeze(1)
    torch.testing.assert_close(run(table), expected)


def test_adam_equals_torch_sparse_adam() -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer("adam")))
    peer = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    peer.weight.data.copy_(table.weights())
    optimizer = torch.optim.SparseAdam(peer.parameters(), lr=0.1)
    for rows, target in batches(5, n=20):
        optimizer.zero_grad()
        (peer(rows.long()) * target).sum().backward()
        optimizer.step()
        (table(rows) * target).sum().backward()
        table.step(0.1)
    torch.testing.assert_close(table.weights(), peer.weight.data, atol=1e-6, rtol=1e-5)


def test_two_lookups_before_a_step_are_one_update() -> None:
    rows, target = batches(1)[0]
    whole, halves = (filled(TorchTable(ROWS, WIDTH, TableOptimizer())) for _ in range(2))
    (whole(rows) * target).sum().backward()
    loss = (halves(rows[:90]) * target[:90]).sum() + (halves(rows[90:]) * target[90:]).sum()
    loss.backward()
    whole.step(0.1)
    halves.step(0.1)
    assert torch.equal(whole.weights(), halves.weights())


def test_a_scaled_step_is_a_step_on_scaled_gradients() -> None:
    rows, target = batches(1)[0]
    a, b = (filled(TorchTable(ROWS, WIDTH, TableOptimizer())) for _ in range(2))
    (a(rows) * target).sum().backward()
    a.step(0.1, scale=0.25)
    (b(rows) * target * 0.25).sum().backward()
    b.step(0.1)
    assert torch.equal(a.weights(), b.weights())


def test_evaluation_leaves_no_trace() -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer())).eval()
    before = table.weights().clone()
    table(batches(1)[0][0])
    table.step(0.1)
    assert torch.equal(table.weights(), before)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam"])
def test_bits_do_not_depend_on_the_number_of_threads(optimizer: str) -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            table = TorchTable(20_000, 16, TableOptimizer(optimizer))  # type: ignore[arg-type]
            table.initialise(0.05, torch.Generator().manual_seed(1))
            g = torch.Generator().manual_seed(2)
            for _ in range(3):
                rows = torch.randint(0, 20_000, (60_000,), generator=g, dtype=torch.int32) // 7
                (table(rows) * torch.randn(60_000, 16, generator=g)).sum().backward()
                table.step(0.1)
            results.append(table.weights().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


@needs_fbgemm
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_fbgemm_agrees_with_torch(optimizer: str) -> None:
    settings = TableOptimizer(optimizer)  # type: ignore[arg-type]
    ours = filled(TorchTable(ROWS, WIDTH, settings))
    theirs = filled(FbgemmTable(ROWS, WIDTH, settings))
    rows = batches(1)[0][0]
    assert torch.equal(ours.weights(), theirs.weights())
    assert torch.equal(ours(rows).detach(), theirs(rows).detach())
    filled(ours).step(0.1)
    torch.testing.assert_close(run(ours), run(theirs), atol=1e-6, rtol=1e-5)
    for name, state in ours.optimizer_state().items():
        torch.testing.assert_close(state, theirs.optimizer_state()[name], atol=1e-5, rtol=1e-5)


@needs_fbgemm
def test_fbgemm_says_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="no Adam on a CPU"):
        FbgemmTable(ROWS, WIDTH, TableOptimizer("adam"))
    with pytest.raises(ConfigError, match="multiple of 4"):
        FbgemmTable(ROWS, 30, TableOptimizer())
    with pytest.raises(ConfigError, match="no such pull towards 0"):
        FbgemmTable(ROWS, WIDTH, TableOptimizer(l2=0.1))


def test_row_average_equals_the_average_of_the_whole_table() -> None:
    table = filled(TorchTable(ROWS, WIDTH, TableOptimizer()))
    table.average = RowAverage(table.weights(), 0.9)
    history: list[Tensor] = []
    for rows, target in batches(30, n=5):  # few rows a step: most rows lag behind
        (table(rows) * target).sum().backward()
        table.step(0.1)
        history.append(table.weights().clone())
        shares = torch.tensor([0.9**age for age in range(len(history))]).flip(0)
        dense = (torch.stack(history) * (shares / shares.sum())[:, None, None]).sum(0)
        torch.testing.assert_close(table.average.materialise(table.weights()), dense, atol=1e-6, rtol=1e-5)
