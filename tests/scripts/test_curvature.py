"""The comparison of the Krylov engine with scipy: its wrapper of lobpcg."""

import pytest
import torch

from landscapes.krylov import random_block
from scripts.curvature import Columns, Counter, lobpcg


@pytest.mark.parametrize("columns", [1, 3])
def test_lobpcg_of_any_number_of_columns(columns):
    q = torch.linalg.qr(random_block(torch.zeros(40, dtype=torch.float64), 40))[0]
    exact = torch.cat([torch.linspace(0.1, 1.0, 36, dtype=torch.float64), torch.arange(3.0, 7.0, dtype=torch.float64)])
    hessian = q * exact @ q.mT
    product = Counter(lambda v: hessian @ v, q[0])
    values, vectors = lobpcg(Columns(product), random_block(q[0], columns).mT, 60)
    torch.testing.assert_close(values, exact.flip(0)[:columns], rtol=1e-8, atol=0)
    torch.testing.assert_close(hessian @ vectors, vectors * values, rtol=0, atol=1e-4)
    assert product.count >= columns
