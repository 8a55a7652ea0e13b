"""The two forms of slopes: one row an example, and one distribution for all examples of a device."""

import pytest
import torch
from fedrec.meta.slopes import DenseSlopes, SharedSlopes, own_rows, product

DEVICES, EXAMPLES, ITEMS, DIM = 3, 5, 7, 4


def pair():
    """The same slopes in both forms."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.softmax(torch.randn(DEVICES, 1, ITEMS, generator=generator), -1)
    weights = torch.rand(DEVICES, EXAMPLES, generator=generator)
    targets = torch.randint(0, ITEMS, (DEVICES, EXAMPLES), generator=generator)
    rows = chosen - torch.nn.functional.one_hot(targets, ITEMS)
    return DenseSlopes(rows, weights), SharedSlopes(chosen, weights, targets)


@pytest.mark.parametrize("own", [False, True])
def test_both_forms_give_the_same_products(own):
    dense, shared = (one.weighted(torch.linspace(0.5, 2.0, EXAMPLES).expand(DEVICES, -1)) for one in pair())
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(*[DEVICES] * own, ITEMS, DIM, generator=generator)
    states = torch.randn(DEVICES, 1, DIM, generator=generator)
    scores = torch.randn(DEVICES, 1, ITEMS, generator=generator)
    items = torch.randint(0, ITEMS, (DEVICES, EXAMPLES, 2), generator=generator)
    factor = torch.rand(DEVICES, 1, generator=generator)
    for mine, other in (
        (dense.times(matrix), shared.times(matrix)),
        (dense.summed(), shared.summed()),
        (dense.combined(factor), shared.combined(factor)),
        (dense.squares(), shared.squares()),
        (dense.dot(scores), shared.dot(scores)),
        (dense.at(items), shared.at(items)),
        (dense.tables(states.expand(-1, EXAMPLES, -1)), shared.tables(states)),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_dense_products_are_those_of_the_weighted_rows():
    dense, _ = pair()
    rows, states = dense.values * dense.weights[..., None], torch.randn(DEVICES, EXAMPLES, DIM)
    torch.testing.assert_close(dense.gram, rows @ rows.mT)
    torch.testing.assert_close(dense.table_sum(states), torch.einsum("nbv,nbd->vd", rows, states))
    torch.testing.assert_close(dense.tables(states), rows.mT @ states)


def test_rows_of_own_tables_are_rows_of_all_tables():
    tables = torch.randn(DEVICES, ITEMS, DIM)
    rows = torch.randint(0, ITEMS, (DEVICES, 2, 3))
    taken = tables.flatten(0, 1)[own_rows(rows, ITEMS)]
    assert torch.equal(taken[1, 0, 2], tables[1, rows[1, 0, 2]])
    torch.testing.assert_close(product(tables, torch.eye(DIM)), tables)
