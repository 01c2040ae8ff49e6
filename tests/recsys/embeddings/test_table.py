"""Kernels against formulas, against torch's own optimizers and against each other, in every format."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import Tensor

from features.errors import ConfigError
from recsys.embeddings.average import RowAverage
from recsys.embeddings.fbgemm_table import FbgemmTable
from recsys.embeddings.formats import FormatName, RowFormat
from recsys.embeddings.kernel import is_installed, make_table
from recsys.embeddings.numba_table import NumbaTable
from recsys.embeddings.table import OptimizerName, Table, TableOptimizer
from recsys.embeddings.torch_table import TorchTable, sum_by_row

ROWS, WIDTH = 50, 8
FP32 = RowFormat("fp32", WIDTH)
KERNELS = [TorchTable, NumbaTable]
FORMATS = typing.get_args(FormatName)
OPTIMIZERS = typing.get_args(OptimizerName)
needs_fbgemm = pytest.mark.skipif(not is_installed("fbgemm_gpu"), reason="fbgemm-gpu is not installed")
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


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
    return table.values().clone()


def dense_gradient(rows: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(ROWS, WIDTH).index_add_(0, rows.long(), target)


def test_sum_by_row_equals_index_add() -> None:
    rows, grad = batches(1)[0]
    unique, sums = sum_by_row(rows, grad)
    assert unique.tolist() == sorted(set(rows.tolist()))
    torch.testing.assert_close(sums, dense_gradient(rows, grad)[unique.long()])


@each_kernel
def test_forward_gathers_rows(kernel: type[TorchTable]) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer("sgd")))
    rows = torch.tensor([3, 3, 49, 0], dtype=torch.int32)
    assert torch.equal(table(rows).detach(), table.values()[rows.long()])


@each_kernel
def test_sgd_equals_the_dense_formula(kernel: type[TorchTable]) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer("sgd")))
    expected = table.values().clone()
    for rows, target in batches(5):
        expected -= 0.1 * dense_gradient(rows, target)
    torch.testing.assert_close(run(table), expected)


@each_kernel
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_rowwise_adagrad_equals_the_dense_formula(kernel: type[TorchTable], l2: float) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer("rowwise_adagrad", eps=1e-8, l2=l2)))
    expected, momentum = table.values().clone(), torch.zeros(ROWS)
    for rows, target in batches(5):
        gradient = dense_gradient(rows, target)
        touched = rows.long().unique()
        gradient[touched] += l2 * expected[touched]
        momentum += gradient.square().mean(1)
        expected -= 0.1 * gradient / (momentum.sqrt() + 1e-8).unsqueeze(1)
    torch.testing.assert_close(run(table), expected)


@each_kernel
def test_adam_equals_torch_sparse_adam(kernel: type[TorchTable]) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer("adam")))
    peer = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    peer.weight.data.copy_(table.values())
    optimizer = torch.optim.SparseAdam(peer.parameters(), lr=0.1)
    for rows, target in batches(5, n=20):
        optimizer.zero_grad()
        (peer(rows.long()) * target).sum().backward()
        optimizer.step()
        (table(rows) * target).sum().backward()
        table.step(0.1)
    torch.testing.assert_close(table.values(), peer.weight.data, atol=1e-5, rtol=1e-4)


@each_kernel
def test_rmsprop_equals_dense_adam_without_a_first_moment(kernel: type[TorchTable]) -> None:
    """Over the whole table at every step, rows that are not touched included."""
    table = filled(kernel(ROWS, FP32, TableOptimizer("rmsprop", beta2=0.9)))
    peer = table.values().requires_grad_(True)
    optimizer = torch.optim.Adam([peer], lr=0.1, betas=(0.0, 0.9))
    for rows, target in batches(20, n=5):
        optimizer.zero_grad()
        (peer[rows.long()] * target).sum().backward()
        optimizer.step()
        (table(rows) * target).sum().backward()
        table.step(0.1)
    torch.testing.assert_close(table.values(), peer.detach(), atol=1e-6, rtol=1e-5)


@each_kernel
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_rowwise_moment_is_the_mean_over_the_row(kernel: type[TorchTable], optimizer: str) -> None:
    """On gradients of equal size in every column both forms are one."""
    tables = [filled(kernel(ROWS, FP32, TableOptimizer(name))) for name in (optimizer, f"rowwise_{optimizer}")]  # type: ignore[arg-type]
    for rows, target in batches(5):
        for table in tables:
            (table(rows) * target.sign()).sum().backward()
            grad = table.pending[0][1]
            table.pending = [(rows[:1], grad[:1])]  # one lookup: a gradient of ones and minus ones
            table.step(0.1)
    torch.testing.assert_close(tables[0].values(), tables[1].values())
    assert tables[1].state["second"].shape == (ROWS,)


@pytest.mark.parametrize("width", [1, 5, 16, 70])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kernels_agree(optimizer: OptimizerName, format: FormatName, width: int) -> None:
    """Lookups to the bit; updates but for the order of a sum, which may tip a rounding once in a while."""
    settings = TableOptimizer(optimizer, l2=0.01)
    tables = [filled(kernel(ROWS, RowFormat(format, width), settings)) for kernel in KERNELS]
    for table in tables:
        table.average = RowAverage(ROWS, width, 0.9)
    g = torch.Generator().manual_seed(3)
    for _ in range(4):
        rows, target = (
            torch.randint(0, ROWS, (60,), generator=g, dtype=torch.int32),
            torch.randn(60, width, generator=g),
        )
        tables[1].load_stored(tables[0].stored())
        found = [table(rows) for table in tables]
        assert torch.equal(found[0].detach(), found[1].detach())
        for out, table in zip(found, tables, strict=True):
            (out * target).sum().backward()
            table.step(0.05, scale=0.5)
    values = [table.values() for table in tables]
    apart = int(((values[0] - values[1]).abs() > 1e-6).sum())
    assert apart <= (0 if format == "fp32" else 2 + ROWS * width // 100)
    for name, state in tables[0].optimizer_state().items():
        torch.testing.assert_close(state, tables[1].optimizer_state()[name], atol=1e-6, rtol=1e-4)
    assert tables[0].average is not None
    assert tables[1].average is not None
    torch.testing.assert_close(tables[0].average.mean, tables[1].average.mean, atol=1e-6, rtol=1e-4)


@each_kernel
@pytest.mark.parametrize("format", ["bf16", "fp16", "int8", "int4"])
def test_small_steps_add_up(kernel: type[TorchTable], format: FormatName) -> None:
    """A step far below the resolution is lost by rounding to nearest, and right on average by stochastic rounding."""
    table = kernel(4000, RowFormat(format, WIDTH), TableOptimizer("sgd")).train()
    start = torch.full((4000, WIDTH), 0.5)
    start[:, 0] = 1.0  # holds the scale of the row
    table.assign(None, start)
    before = table.values().mean(0)
    rows, steps, size = torch.arange(4000, dtype=torch.int32), 20, 1e-4
    for _ in range(steps):
        table(rows)[:, 1:].sum().backward()
        table.step(size)
    moved = before - table.values().mean(0)
    torch.testing.assert_close(moved[1:], torch.full((WIDTH - 1,), steps * size), atol=1e-3, rtol=0)
    assert moved[0] == pytest.approx(0, abs=1e-3)


@each_kernel
@pytest.mark.parametrize("format", FORMATS[1:])
def test_a_master_copy_trains_in_fp32_and_is_read_as_stored(kernel: type[TorchTable], format: FormatName) -> None:
    table = filled(kernel(ROWS, RowFormat(format, WIDTH), TableOptimizer("sgd", master=True)))
    peer = filled(kernel(ROWS, FP32, TableOptimizer("sgd")))
    rows = batches(1)[0][0]
    assert torch.equal(table(rows).detach(), table.format.round(peer.values())[rows.long()])
    torch.testing.assert_close(run(table), run(peer))
    assert torch.equal(table.stored(), table.format.encode(table.values()))
    assert torch.equal(table.gather(rows), table.format.decode(table.stored())[rows.long()])
    assert table.training_bytes == ROWS * WIDTH * 4 + 8


def test_training_bytes_count_an_fp32_table_that_needs_no_master_copy() -> None:
    plain, master = (TorchTable(ROWS, FP32, TableOptimizer("sgd", master=own)) for own in (False, True))
    assert plain.training_bytes == master.training_bytes == ROWS * WIDTH * 4 + 8


def test_a_kernel_that_fails_is_not_taken_for_one_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(NumbaTable, "__init__", broken)
    with pytest.raises(RuntimeError, match="no such operator"):
        make_table(ROWS, FP32, TableOptimizer(), "numba")


def test_training_bytes_count_weights_state_and_average() -> None:
    table = TorchTable(ROWS, RowFormat("int4", WIDTH), TableOptimizer("rowwise_adagrad"))
    assert table.training_bytes == ROWS * (4 + 2) + ROWS * 4 + 8
    table.average = RowAverage(ROWS, WIDTH, 0.9)
    assert table.training_bytes == ROWS * (4 + 2) + ROWS * 4 + 8 + ROWS * WIDTH * 4 + ROWS * 4 + 4


@each_kernel
def test_two_lookups_before_a_step_are_one_update(kernel: type[TorchTable]) -> None:
    rows, target = batches(1)[0]
    whole, halves = (filled(kernel(ROWS, FP32, TableOptimizer())) for _ in range(2))
    (whole(rows) * target).sum().backward()
    loss = (halves(rows[:90]) * target[:90]).sum() + (halves(rows[90:]) * target[90:]).sum()
    loss.backward()
    whole.step(0.1)
    halves.step(0.1)
    assert torch.equal(whole.values(), halves.values())


@each_kernel
def test_a_scaled_step_is_a_step_on_scaled_gradients(kernel: type[TorchTable]) -> None:
    rows, target = batches(1)[0]
    a, b = (filled(kernel(ROWS, FP32, TableOptimizer())) for _ in range(2))
    (a(rows) * target).sum().backward()
    a.step(0.1, scale=0.25)
    (b(rows) * target * 0.25).sum().backward()
    b.step(0.1)
    assert torch.equal(a.values(), b.values())


@each_kernel
def test_evaluation_leaves_no_trace(kernel: type[TorchTable]) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer())).eval()
    before = table.values().clone()
    table(batches(1)[0][0])
    table.step(0.1)
    assert torch.equal(table.values(), before)


@each_kernel
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam"])
def test_bits_do_not_depend_on_the_number_of_threads(
    kernel: type[TorchTable], optimizer: OptimizerName, format: FormatName
) -> None:
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            table = kernel(20_000, RowFormat(format, 16), TableOptimizer(optimizer))
            table.initialise(0.05, torch.Generator().manual_seed(1))
            g = torch.Generator().manual_seed(2)
            for _ in range(3):
                rows = torch.randint(0, 20_000, (60_000,), generator=g, dtype=torch.int32) // 7
                (table(rows) * torch.randn(60_000, 16, generator=g)).sum().backward()
                table.step(0.1)
            results.append(table.values().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


@needs_fbgemm
@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad"])
def test_fbgemm_agrees_with_torch(optimizer: str) -> None:
    settings = TableOptimizer(optimizer)  # type: ignore[arg-type]
    ours = filled(make_table(ROWS, FP32, settings))
    theirs = filled(FbgemmTable(ROWS, FP32, settings))
    rows = batches(1)[0][0]
    assert torch.equal(ours.values(), theirs.values())
    assert torch.equal(ours(rows).detach(), theirs(rows).detach())
    filled(ours).step(0.1)
    torch.testing.assert_close(run(ours), run(theirs), atol=1e-6, rtol=1e-5)
    for name, state in theirs.optimizer_state().items():
        torch.testing.assert_close(state, ours.optimizer_state()[name], atol=1e-5, rtol=1e-5)


@needs_fbgemm
def test_fbgemm_says_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="does not have this optimizer on a CPU"):
        FbgemmTable(ROWS, FP32, TableOptimizer("adam"))
    with pytest.raises(ConfigError, match="multiple of 4"):
        FbgemmTable(ROWS, RowFormat("fp32", 30), TableOptimizer())
    with pytest.raises(ConfigError, match="no such pull towards 0"):
        FbgemmTable(ROWS, FP32, TableOptimizer(l2=0.1))
    with pytest.raises(ConfigError, match="does not train this format"):
        FbgemmTable(ROWS, RowFormat("int8", WIDTH), TableOptimizer())


@each_kernel
def test_row_average_equals_the_average_of_the_whole_table(kernel: type[TorchTable]) -> None:
    table = filled(kernel(ROWS, FP32, TableOptimizer()))
    table.average = RowAverage(ROWS, WIDTH, 0.9)
    history: list[Tensor] = []
    for rows, target in batches(30, n=5):  # few rows a step: most rows lag behind
        (table(rows) * target).sum().backward()
        table.step(0.1)
        history.append(table.values().clone())
        shares = torch.tensor([0.9**age for age in range(len(history))]).flip(0)
        dense = (torch.stack(history) * (shares / shares.sum())[:, None, None]).sum(0)
        torch.testing.assert_close(table.average.materialise(table.values()), dense, atol=1e-6, rtol=1e-5)
