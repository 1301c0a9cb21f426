"""Dense oracles for Krylov methods: matrices of known spectra, products that are counted, eigenvalues in any order."""

import torch


class Products:
    """v ↦ Av, counted."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.count = 0

    def __call__(self, v):
        self.count += 1
        return self.matrix @ v


def rotation(d, seed):
    """A random orthogonal matrix (d, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def symmetric(eigenvalues, seed=0):
    """A symmetric matrix of these eigenvalues in random coordinates, float64."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q = rotation(len(eigenvalues), seed)
    matrix = (q * eigenvalues) @ q.mT
    return (matrix + matrix.mT) / 2


def ranked(eigenvalues, which):
    """Eigenvalues, most wanted first."""
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    rank = {"largest": eigenvalues, "smallest": -eigenvalues, "magnitude": eigenvalues.abs()}[which]
    return eigenvalues[rank.argsort(descending=True, stable=True)]


def residuals(matrix, pairs):
    """‖Hu − λu‖ of pairs, in float64."""
    vectors = pairs.vectors.cpu().double()
    return torch.linalg.vector_norm(vectors @ matrix.mT - pairs.values[:, None] * vectors, dim=-1)
