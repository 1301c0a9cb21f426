r"""The Krylov space span{g, Hg, …, H^{m−1}g}: an orthonormal basis Q (m, d) and T = Q* H Q, one product at a time.

Full reorthogonalisation (classical Gram–Schmidt, twice) keeps Q orthonormal to rounding, which avoids spurious copies
of Ritz values. Real symmetric H: Lanczos, T tridiagonal and real; both triangles of T hold the same numbers, as
``eigh`` reads only one. Complex θ: H is complex symmetric and T the Hessenberg matrix of the same process under the
Hermitian inner product, which breaks down on invariant spaces only, unlike the bilinear three-term recurrence. The
basis is on the vector's device; T (m, m) on the CPU in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from landscapes.errors import check_callable, check_float_tensor, check_image

Product = Callable[[Tensor], Tensor]

ROUNDING = 10  # a residual below this many eps of the projection is rounding: the space is invariant
SAFE = 1e4  # norms this far from where squares under- or overflow are those of up to 10⁸ entries
FEWEST = 8  # rows of storage to begin with


class KrylovSpace:
    r"""Q (m, d), T (m, m) and the residual H q_m − Q* T e_m = β q_{m+1} after m products.

    ``beta`` is 0 if the space is invariant: the eigenvalues of T are then eigenvalues of H, and functions of H on g are
    exact. ``finite`` is False once a vector or a product is not finite. The vector must not be zero. Results carry no
    autograd graph.
    """

    def __init__(self, product: Product, vector: Tensor):
        check_product("product", product)
        check_float_tensor("vector", vector)
        if vector.ndim != 1 or not len(vector):
            raise ValueError(f"vector must have shape (d,), d >= 1, got {tuple(vector.shape)}")
        vector = vector.detach()
        self._product = product
        self.norm = norm(vector)
        self.unit = binary_unit(self.norm)  # ‖g‖/unit can be squared
        self.wide = torch.complex128 if vector.is_complex() else torch.float64
        self._rows = vector.new_empty(min(FEWEST, vector.shape[-1]) + 1, vector.shape[-1])
        self._rows[0] = vector / self.norm
        self._projected = torch.zeros(FEWEST + 1, FEWEST + 1, dtype=self.wide)
        self._betas = torch.zeros(0, dtype=torch.float64)
        self.size = 0
        self.beta = self.norm
        self.finite = bool(self._rows[0].isfinite().all())

    @property
    def dimension(self) -> int:
        """d."""
        return self._rows.shape[-1]

    @property
    def basis(self) -> Tensor:
        """Q (m, d)."""
        return self._rows[: self.size]

    @property
    def direction(self) -> Tensor:
        """q_{m+1} (d,), the next basis vector; meaningless if beta is 0."""
        return self._rows[self.size]

    @property
    def projected(self) -> Tensor:
        """T (m, m), real symmetric or complex."""
        return self._projected[: self.size, : self.size]

    @property
    def recurrence(self) -> Tensor:
        """The tridiagonal T (m, m) of α and β of real symmetric H: equal to ``projected`` up to errors of products."""
        below = self._betas[: self.size - 1]
        return self.projected.diagonal().diag() + below.diag(1) + below.diag(-1)

    @property
    def invariant(self) -> bool:
        """Whether the space cannot grow: H maps it into itself, to rounding."""
        return self.size > 0 and self.beta == 0

    def grow(self) -> None:
        """Add one dimension, m → m + 1, by one product."""
        m = self.size
        self._reserve(m + 2)
        # a copy: a product that works in place would change the basis
        image = check_image("product", self._product(self._rows[m].clone()), self._rows[m]).detach()
        residual, column = orthogonalise(image, self._rows[: m + 1])
        column = column.to("cpu", self.wide)
        self._projected[: m + 1, m] = column
        if self.wide == torch.float64:
            self._projected[m, : m + 1] = column
        self.size = m + 1
        beta = norm(residual)
        self.finite = bool(column.isfinite().all()) and beta < math.inf
        rounding = ROUNDING * torch.finfo(residual.dtype).eps * float(self.projected.abs().max())
        # at m = d the residual is zero in exact arithmetic: normalising it would add a row of rounding errors
        if not self.finite or beta <= rounding or self.size == self.dimension:
            self.beta = 0.0
            return
        self.beta = beta
        self._betas = torch.cat([self._betas, torch.tensor([beta], dtype=torch.float64)])
        self._rows[self.size] = residual / beta
        self._projected[self.size, m] = beta

    def _reserve(self, rows: int) -> None:
        if rows > self._rows.shape[0]:
            # unused rows are never read; doubling costs about one copy of each row in total
            more = min(2 * rows, self.dimension + 1)
            self._rows = torch.cat(
                [self._rows, self._rows.new_empty(max(more, rows) - len(self._rows), self.dimension)]
            )
        if rows > self._projected.shape[0]:
            wider = torch.zeros(2 * rows, 2 * rows, dtype=self.wide)
            wider[: self._projected.shape[0], : self._projected.shape[0]] = self._projected
            self._projected = wider

    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_i c_i q_i, (..., d) for coefficients (..., m) or, with the residual's direction, (..., m + 1)."""
        check_float_tensor("coefficients", coefficients)
        if coefficients.ndim == 0 or coefficients.shape[-1] > self.size + 1:
            raise ValueError(f"coefficients must have shape (..., {self.size}), got {tuple(coefficients.shape)}")
        dtype = self._rows.dtype.to_complex() if coefficients.is_complex() else self._rows.dtype
        rows = self._rows[: coefficients.shape[-1]].to(dtype)
        return coefficients.to(rows) @ rows


def check_product(name: str, product: Product) -> None:
    """Raise TypeError unless ``product`` can be called. Its results are checked by ``check_image``."""
    check_callable(name, product, "v (d,) -> Hv (d,)")


def norm(vector: Tensor) -> float:
    """‖v‖, where squares under- or overflow, too; NaN or infinite if an entry is."""
    size = float(torch.linalg.vector_norm(vector))
    numbers = torch.finfo(vector.dtype)
    if len(vector) and not SAFE * numbers.tiny**0.5 < size < numbers.max**0.5 / SAFE:
        largest = float(vector.abs().max())
        if 0 < largest < math.inf:
            size = largest * float(torch.linalg.vector_norm(vector / largest))
    return size


def row_norms(rows: Tensor) -> Tensor:
    """Norms (k,) of rows (k, d), float64 on the CPU, where squares underflow, too."""
    if not rows.shape[-1]:
        return torch.zeros(len(rows), dtype=torch.float64)
    units = rows.abs().amax(-1, keepdim=True)
    units = torch.where((units > 0) & units.isfinite(), units, 1)
    return torch.linalg.vector_norm(rows / units, dim=-1, dtype=torch.float64).cpu() * units[:, 0].double().cpu()


def binary_unit(size: float) -> float:
    """The power of two below ``size`` > 0, in which numbers of that size can be squared; 1 if it is 0 or not finite."""
    return 2.0 ** (math.frexp(size)[1] - 1) if 0 < size < math.inf else 1.0


def orthogonalise(image: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of ``image`` (d,) orthogonal to the basis (m, d), and its components along it (m,), by two passes."""
    # classical and not modified Gram–Schmidt: two matrix products a pass, and twice is enough for orthogonality
    first = basis.conj() @ image
    residual = image - first @ basis
    second = basis.conj() @ residual
    return residual - second @ basis, first + second
