"""Baselines: parity with their formulas value by value, gradients of dense autograd, bytes within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.batch import Batch
from features.layout import Layout
from recsys.embeddings import EmbeddingConfig, TableOptimizer, plan_embedding
from recsys.embeddings.addressing import salt
from recsys.embeddings.baselines import (
    BaselineConfig,
    BaselineEmbedding,
    FrequencySplitEmbedding,
    QuotientRemainderEmbedding,
    RobeEmbedding,
)
from recsys.embeddings.baselines.quotient_remainder import choose_moduli
from recsys.embeddings.plan import head_of
from recsys.models import CTRModel, ModelConfig

SIZES = {"user": 3000, "item": 700, "age": 7}
LAYOUT = Layout(id_names=tuple(SIZES), label_names=("click",))
WIDTH = 8
BUDGET = 12_000
SGD = TableOptimizer("sgd")
NO_BAGS = (torch.empty(0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.int64))


def counts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (np.unique(rng.integers(-(2**63), 2**63 - 1, n)), rng.zipf(1.5, n).clip(max=1000))
        for name, n in SIZES.items()
    }


COUNTS = counts()
MAKERS: dict[str, Callable[[int, BaselineConfig], BaselineEmbedding]] = {
    "robe": lambda budget, config: RobeEmbedding(LAYOUT, COUNTS, budget, config, block=4),
    "qr": lambda budget, config: QuotientRemainderEmbedding(LAYOUT, COUNTS, budget, config),
    "frequency": lambda budget, config: FrequencySplitEmbedding(LAYOUT, COUNTS, budget, config),
}
ALL = pytest.mark.parametrize("name", MAKERS)


def ids(rows: int = 40, unseen: bool = True) -> Tensor:
    """[rows, F] values of training, the last row unseen ones."""
    rng = np.random.default_rng(1)
    out = np.stack([rng.choice(COUNTS[name][0], rows) for name in SIZES], axis=1)
    if unseen:
        out[-1] = [1, 2, 3]
    return torch.from_numpy(out)


def mix(x: int) -> int:
    """splitmix64's finaliser on Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def hashed(feature: str, chunk: int, value: int, hash_seed: int = 0) -> int:
    return mix((value ^ salt(feature, chunk, hash_seed)) % 2**64)


def reduced(hash_: int, span: int) -> int:
    return ((hash_ >> 32) * span) >> 32


def assert_is(module: BaselineEmbedding, vector_of: Callable[[str, int], np.ndarray]) -> None:
    batch = ids()
    found = module.eval()(batch, *NO_BAGS).numpy()
    for row, vectors in zip(batch, found, strict=True):
        by_hand = [vector_of(name, int(value)) for name, value in zip(SIZES, row, strict=True)]
        assert np.array_equal(vectors, np.concatenate(by_hand))


@pytest.mark.parametrize("block", [1, 4, 8])
def test_robe_is_its_formula(block: int) -> None:
    # few floats, so that blocks overlap and some go round the end
    module = RobeEmbedding(LAYOUT, COUNTS, 4 * 101, BaselineConfig(WIDTH, seed=3, hash_seed=5), block=block)
    array = module.table.stored().flatten().numpy()
    went_round = 0

    def vector_of(feature: str, value: int) -> np.ndarray:
        nonlocal went_round
        out = []
        for z in range(WIDTH // block):
            h = hashed(feature, z, value, 5)
            start = reduced(h, 101)
            went_round += start + block > 101
            out += [(-1 if h & 1 else 1) * array[(start + k) % 101] for k in range(block)]
        return np.array(out)

    assert_is(module, vector_of)
    assert block == 1 or went_round


def test_quotient_and_remainder_rows_are_multiplied() -> None:
    module = QuotientRemainderEmbedding(LAYOUT, COUNTS, BUDGET, BaselineConfig(WIDTH, hash_seed=5))
    table = module.table.stored().numpy()
    modulus, sizes = module.moduli, {name: len(COUNTS[name][0]) for name in SIZES}
    assert modulus["age"] == 0 < modulus["item"]
    base_user = sizes["age"] + 1
    base_item = base_user + math.ceil(sizes["user"] / modulus["user"]) + modulus["user"]
    # keys are sorted as signed integers
    keys = sorted((hashed("age", 0, int(v), 5) >> 32 ^ 2**31) - 2**31 for v in COUNTS["age"][0])

    def vector_of(feature: str, value: int) -> np.ndarray:
        h = hashed(feature, 0, value, 5)
        if feature == "age":
            key = (h >> 32 ^ 2**31) - 2**31
            return table[keys.index(key) if key in keys else sizes["age"]]
        base = base_user if feature == "user" else base_item
        v, m = reduced(h, sizes[feature]), modulus[feature]
        return table[base + v // m] * table[base + math.ceil(sizes[feature] / m) + v % m]

    assert_is(module, vector_of)


def test_frequent_ids_have_rows_of_their_own_and_the_others_hash() -> None:
    module = FrequencySplitEmbedding(LAYOUT, COUNTS, BUDGET, BaselineConfig(WIDTH), frequent=0.8).eval()
    own = head_of(COUNTS, list(SIZES), int(BUDGET * 0.8) // (4 * WIDTH + 4))
    owned = sum(len(v) for v in own.values())
    columns = {name: torch.from_numpy(COUNTS[name][0]) for name in SIZES}
    seen_rows: set[int] = set()
    for i, name in enumerate(SIZES):
        batch = torch.zeros(len(columns[name]), len(SIZES), dtype=torch.int64)
        batch[:, i] = columns[name]
        rows = module.address(batch, module.exact_keys, module.hot_keys)[:, i]
        frequent = torch.isin(columns[name], torch.from_numpy(own[name]))
        assert (rows[frequent] < owned).all()
        assert len(rows[frequent].unique()) == frequent.sum()
        assert (rows[~frequent] >= owned).all()
        # no feature's rows are another's
        assert not seen_rows & set(rows.tolist())
        seen_rows |= set(rows.tolist())
    assert_is(
        module,
        lambda feature, value: module.table.stored()[
            module.address(torch.full((1, 3), value), module.exact_keys, module.hot_keys)[0, list(SIZES).index(feature)]
        ].numpy(),
    )


def test_no_rare_id_was_seen_more_often_than_a_frequent_one() -> None:
    own = head_of(COUNTS, list(SIZES), 200)
    assert sum(len(v) for v in own.values()) == 200
    seen = {True: [], False: []}  # type: dict[bool, list[int]]
    for name, (values, times) in COUNTS.items():
        for value, n in zip(values, times, strict=True):
            seen[bool(value in own[name])].append(int(n))
    assert min(seen[True]) >= max(seen[False])


class _Dense(torch.nn.Module):
    """A table whose gradient is dense autograd's."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(weights.clone())
        self.rows, self.width = weights.shape

    def forward(self, rows: Tensor) -> Tensor:
        return self.weights[rows.to(torch.int64)]


@ALL
def test_gradients_are_those_of_dense_autograd(name: str) -> None:
    module = MAKERS[name](BUDGET, BaselineConfig(WIDTH, optimizer=SGD)).train()
    batch, weights = ids(), module.table.stored().clone()
    factors = torch.randn(len(batch), module.output_width, generator=torch.Generator().manual_seed(0))
    (module(batch, *NO_BAGS).square() * factors).sum().backward()
    touched = module.table.gradients()
    assert touched is not None
    sparse = torch.zeros_like(weights).index_copy(0, touched[0].to(torch.int64), touched[1])
    table, module.table = module.table, _Dense(weights)  # type: ignore[assignment]
    (module(batch, *NO_BAGS).square() * factors).sum().backward()
    assert module.table.weights.grad is not None  # type: ignore[attr-defined]
    dense = module.table.weights.grad  # type: ignore[attr-defined]
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-7)
    table.step(0.5)
    torch.testing.assert_close(table.stored(), weights - 0.5 * dense, rtol=1e-5, atol=1e-7)


@ALL
@given(budget=st.integers(8_000, 150_000), hash_seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_bytes_are_within_the_budget_and_use_it(name: str, budget: int, hash_seed: int) -> None:
    module = MAKERS[name](budget, BaselineConfig(WIDTH, hash_seed=hash_seed))
    stored = module.table.stored().numel() * 4 + module.exact_keys.numel() * module.exact_keys.element_size()
    assert module.table_bytes == stored <= budget
    # a quotient table grows in steps, coarse ones where there are only three features and moduli are small
    used = 0.98 if name != "qr" else 0.9 if budget < 20_000 else 0.5
    assert stored >= used * min(budget, 120_000)


@ALL
def test_equal_seeds_give_equal_bits_and_others_other_hashes(name: str) -> None:
    first, again, other = (MAKERS[name](BUDGET, BaselineConfig(WIDTH, 1, s)).eval() for s in (0, 0, 1))
    batch = ids()
    assert torch.equal(first(batch, *NO_BAGS), again(batch, *NO_BAGS))
    assert torch.equal(first.table.stored(), other.table.stored())
    assert not torch.equal(first(batch, *NO_BAGS), other(batch, *NO_BAGS))


def test_products_start_as_wide_as_rows_of_full_features() -> None:
    module = QuotientRemainderEmbedding(LAYOUT, COUNTS, 60_000, BaselineConfig(WIDTH, init_scale=0.02)).eval()
    vectors = module(ids(2000, unseen=False), *NO_BAGS).view(2000, 3, WIDTH)
    composed = [i for i, name in enumerate(SIZES) if module.moduli[name]]
    assert composed
    assert vectors[:, composed].std().item() == pytest.approx(0.02 / math.sqrt(3), rel=0.1)


@given(
    sizes=st.lists(st.integers(0, 20_000), min_size=1, max_size=8),
    budget=st.integers(100_000, 2_000_000),
)
@settings(max_examples=60, deadline=None)
def test_moduli_fit_and_a_larger_budget_never_asks_for_larger_ones(sizes: list[int], budget: int) -> None:
    values = {str(i): n for i, n in enumerate(sizes)}

    def total(moduli: dict[str, int]) -> int:
        full = sum((n + 1) * 64 + n * 4 for name, n in values.items() if not moduli[name])
        return full + sum((math.ceil(values[k] / m) + m) * 64 for k, m in moduli.items() if m)

    moduli, more = choose_moduli(values, budget, 16, 64), choose_moduli(values, 2 * budget, 16, 64)
    assert total(moduli) <= budget
    assert all(more[name] <= moduli[name] for name in values)
    # a composed feature has fewer rows than a full one
    assert all(math.ceil(values[k] / m) + m < values[k] + 1 + values[k] / 16 for k, m in moduli.items() if m)


@ALL
def test_a_model_trains_with_a_baseline_in_it(name: str) -> None:
    config = BaselineConfig(WIDTH)
    embedding = MAKERS[name](BUDGET, config)
    plan = plan_embedding(LAYOUT, EmbeddingConfig(width=WIDTH, rows=1), COUNTS)
    model = CTRModel(LAYOUT, plan, ModelConfig(hidden=(8,)), optimizer=config.optimizer, embedding=embedding).train()
    batch = Batch(ids(), *NO_BAGS, dense=torch.empty(40, 0), vectors=torch.empty(40, 0))
    optimizer = torch.optim.Adam(model.dense_parameters().values(), lr=0.01)
    labels, losses = torch.arange(40).remainder(2).float().unsqueeze(1), []
    for _ in range(20):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model.logits(batch), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        embedding.table.step(0.05)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(model.tensors()["table"], embedding.table.stored())


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill a width of 8"):
        RobeEmbedding(LAYOUT, COUNTS, BUDGET, BaselineConfig(8), block=3)
    with pytest.raises(ValueError, match="no choice of moduli fits into 100 bytes"):
        QuotientRemainderEmbedding(LAYOUT, COUNTS, 100, BaselineConfig())
    with pytest.raises(ValueError, match="rare rows for 3 features"):
        FrequencySplitEmbedding(LAYOUT, COUNTS, 100, BaselineConfig())
    with pytest.raises(ValueError, match="not tags"):
        FrequencySplitEmbedding(Layout(bag_names=("tags",), bag_poolings=("sum",)), COUNTS, BUDGET, BaselineConfig())
