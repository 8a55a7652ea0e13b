import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.meta._matmul import rows_times


def pair(rows=(3, 4), matrix=(4, 5)):
    generator = torch_stream(0, "matmul")
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (rows, matrix))


def plain(rows, matrix):
    return rows @ matrix


def weighed(product):
    return lambda rows, matrix: (product(rows, matrix).sin() * torch.arange(15).reshape(3, 5)).sum()


def test_value_and_both_gradients():
    rows, matrix = pair()
    assert torch.equal(rows_times(rows, matrix), rows @ matrix)
    assert torch.autograd.gradcheck(rows_times, (rows.requires_grad_(), matrix.requires_grad_()))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, None), (None, 2), (1, 2)])
@pytest.mark.parametrize("what", ["value", "gradients", "gradient of the batch"])
def test_under_vmap_it_is_the_plain_product(in_dims, what):
    shapes = [(3, 4), (4, 5)]
    batched = [list(shape) for shape in shapes]
    for own, dim in zip(batched, in_dims, strict=True):
        if dim is not None:
            own.insert(dim, 2)
    rows, matrix = pair(*batched)

    def run(product):
        if what == "value":
            return (torch.func.vmap(product, in_dims)(rows, matrix),)
        if what == "gradients":
            return torch.func.vmap(torch.func.grad(weighed(product), argnums=(0, 1)), in_dims)(rows, matrix)
        total = lambda left, right: torch.func.vmap(weighed(product), in_dims)(left, right).sum()  # noqa: E731
        return torch.func.grad(total, argnums=(0, 1))(rows, matrix)

    for mine, wanted in zip(run(rows_times), run(plain), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_under_two_vmaps():
    rows, matrix = pair((2, 6, 3, 4), (2, 4, 5))

    def run(product):
        inner = torch.func.vmap(torch.func.grad(weighed(product)), (0, None))
        return torch.func.vmap(inner)(rows, matrix)

    torch.testing.assert_close(run(rows_times), run(plain))
