r"""An orthonormal basis that grows in any direction of its own images, with the Ritz pairs of H on it.

For orthonormal rows Q (m, d) and W (w, d), together orthonormal, the space stores

    H Q* = Q* T + W* C,    T (m, m), C (w, m),

so the images HQ* need no storage: the Ritz pairs are (θ, Q*s) of ½(T + Tᵀ) s = θ s, with the residual
½Q*(T − Tᵀ)s + W*C s, and thick restarts (Wu & Simon 2000) are T ← SᵀTS, Q ← SᵀQ, C ← C S. Entries of T below the
diagonal were in C before their row moved to Q, those above are measured at the next product: T − Tᵀ shows products
that are not symmetric or not reproduced, such as those in another precision. W has the directions in which the space
can grow. Each growth multiplies H by one of them, moves it to Q and appends the part of its image outside to W. From
one row w stays 1, and this is Lanczos with full reorthogonalisation; w rows in turn are a block Lanczos; any
combination of W, such as the residual of the least accurate pair, is Davidson's choice (1975), without a
preconditioner. Only vectors (d,) are in the caller's precision and on its device; T, C and the Ritz values are float64
on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from landscapes.errors import check_image
from landscapes.krylov.space import ROUNDING, Product, binary_unit, norm

FEWEST = 8  # rows of storage to begin with
ROUNDED = 4  # eps of the largest Ritz value
SMALL = 0.1  # part of the components known by symmetry that need not be subtracted first
CHUNK = 2**16  # columns of the basis that a restart transforms at a time

Rank = Callable[[Tensor], Tensor]


class RitzSpace:
    r"""Q, W, T and C, with the Ritz values in descending order of ``rank``, and the number of products.

    ``most`` rows are stored without further memory, once the first ``FEWEST`` are full.
    ``finite`` is False once a product is not finite; the space then stays as it is.
    """

    def __init__(self, product: Product, like: Tensor, rank: Rank, most: int):
        self._product = product
        self._rank = rank
        self._most = most
        self._store = like.new_empty(min(FEWEST, most), like.shape[-1])
        self._coupled = 0  # m: the first rows of the store are Q, the next are W
        self._rows = 0  # m + w
        self._projected = torch.zeros(FEWEST, FEWEST, dtype=torch.float64)
        self._coupling = torch.zeros(0, 0, dtype=torch.float64)
        self._dropped = torch.zeros(
            0, 0, dtype=torch.float64
        )  # parts of images along directions that restarts have dropped
        self._eps = torch.finfo(like.dtype).eps
        self.products = 0
        self.finite = True
        self.values = torch.zeros(0, dtype=torch.float64)
        self._mixing = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def size(self) -> int:
        """m, the dimension of the space."""
        return self._coupled

    @property
    def directions(self) -> int:
        """w, the number of directions in which the space can grow; 0 if it is invariant."""
        return self._rows - self._coupled

    @property
    def full(self) -> bool:
        """Whether the space is the whole of R^d."""
        return self.size == self._store.shape[-1]

    @property
    def scale(self) -> float:
        """The largest Ritz value in magnitude."""
        return float(self.values.abs().max()) if len(self.values) else 0.0

    @property
    def rounding(self) -> float:
        """The error of a Ritz value by rounding."""
        return ROUNDED * self._eps * self.scale

    @property
    def ranks(self) -> Tensor:
        """The rank of each Ritz value, descending."""
        return self._rank(self.values)

    def open(self, direction: Tensor) -> Tensor:
        """Append the part of ``direction`` (d,) outside Q and W to W, unless it is rounding.

        Returns the components of direction/‖direction‖ along the directions W of before and the new one, if any.
        """
        size = norm(direction)
        if not size > 0:
            return torch.zeros(self.directions, dtype=torch.float64)
        outside = direction / size
        left, components = self._orthogonalise(outside)
        combination = components[self.size :]
        if not left > ROUNDING * self._eps:
            return combination
        # the division enlarges rounding errors along the basis by 1/left
        outside /= left
        rest, _ = self._orthogonalise(outside)
        self._append(outside, rest, torch.zeros(1, self.size, dtype=torch.float64))
        return torch.cat([combination, combination.new_tensor([left])])

    def turn(self, combination: Tensor) -> None:
        """Rotate W so that its first row is Σ_i c_i w_i/‖c‖, for ``combination`` c (w,)."""
        unit = combination / norm(combination)
        # the Householder reflection that exchanges c and ∓e₁, of the sign without cancellation
        mirror = unit.clone()
        mirror[0] += 1.0 if float(unit[0]) >= 0 else -1.0
        mirror = mirror / torch.linalg.vector_norm(mirror)
        growing = self._store[self._coupled : self._rows]
        growing.addr_(mirror.to(growing), mirror.to(growing) @ growing, alpha=-2)
        self._coupling.addr_(mirror, mirror @ self._coupling, alpha=-2)

    def grow(self) -> None:
        """m → m + 1 by the first row of W and one product."""
        m = self._coupled
        # a copy: a product that works in place would change the basis
        image = check_image("product", self._product(self._store[m].clone()), self._store[m]).detach()
        self.products += 1
        outside, beta, components = self._outside_by_symmetry(image)
        self.finite = math.isfinite(beta) and bool(components.isfinite().all())
        if not self.finite:
            return
        self._extend_projection(self._coupling[0], components[: m + 1])
        self._coupling = torch.cat([self._coupling[1:], components[m + 1 :, None]], dim=1)
        self._coupled = m + 1
        rounding = ROUNDING * self._eps * float(self._projected[: m + 1, : m + 1].abs().max())
        if beta > rounding and self._rows < self._store.shape[-1]:
            row = torch.zeros(1, m + 1, dtype=torch.float64)
            row[0, m] = beta
            self._append(outside, beta, row)

    def _outside_by_symmetry(self, image: Tensor) -> tuple[Tensor, float, Tensor]:
        """As ``_orthogonalise``, for the image of the first row of W, whose components along Q are a row of C.

        They are subtracted first, so that the rest is measured and removed in one pass, without cancellation.
        """
        m, known = self._coupled, self._coupling[0]
        # few are large, the last ones: those before them are left to the pass
        first = int((known.square().cumsum(0).sqrt() <= SMALL * torch.linalg.vector_norm(known)).sum())
        growing = (self._store[m : self._rows] @ image).to("cpu", torch.float64)
        components = torch.cat([torch.zeros(first, dtype=torch.float64), known[first:], growing])
        large = self._store[first : self._rows]
        outside = torch.addmv(image, large.mT, components[first:].to(image), alpha=-1)
        size, rest = self._orthogonalise(outside)
        return outside, size, components + rest

    def _orthogonalise(self, vector: Tensor) -> tuple[float, Tensor]:
        """Subtract from ``vector`` (d,) its part in Q and W, in place. Its norm; components along them (m + w,)."""
        rows = self._store[: self._rows]
        found = torch.zeros(self._rows, dtype=torch.float64)
        for _ in range(2):  # twice is enough (Parlett 1980)
            components = rows @ vector
            vector.addmv_(rows.mT, components, alpha=-1)
            size = norm(vector)
            found += components.to("cpu", torch.float64)
            if size > norm(found):  # no cancellation
                break
        return size, found

    def _append(self, row: Tensor, size: float, coupling: Tensor) -> None:
        if self._rows == len(self._store):
            wider = self._store.new_empty(max(self._most, self._rows + 1), self._store.shape[-1])
            wider[: self._rows] = self._store
            self._store = wider
        torch.div(row, size, out=self._store[self._rows])
        self._rows += 1
        self._coupling = torch.cat([self._coupling, coupling])

    def _extend_projection(self, row: Tensor, column: Tensor) -> None:
        m = len(row)
        if m == len(self._projected):
            wider = torch.zeros(2 * m, 2 * m, dtype=torch.float64)
            wider[:m, :m] = self._projected
            self._projected = wider
        self._projected[m, :m] = row
        self._projected[: m + 1, m] = column

    @property
    def _symmetric(self) -> Tensor:
        projected = self._projected[: self.size, : self.size]
        return (projected + projected.mT) / 2

    def solve(self) -> None:
        """The Ritz pairs of T."""
        values, mixing = torch.linalg.eigh(self._symmetric)
        order = self._rank(values).argsort(descending=True, stable=True)
        self.values, self._mixing = values[order], mixing[:, order]

    def residuals(self, count: int) -> Tensor:
        """The residuals of the first ``count`` Ritz pairs of the last ``solve``, as components along W (w, count)."""
        solved = len(self._mixing)
        return self._coupling[:, :solved] @ self._mixing[:, :count]

    def residual_norms(self, count: int) -> tuple[Tensor, Tensor]:
        """Norms (count,) of the first residuals outside Q, and of their parts ½(T − Tᵀ)s and along dropped directions.

        The second are rounding if H is symmetric.
        """
        mixing = self._mixing[:, :count]
        unit = binary_unit(self.scale)
        projected = self._projected[: len(mixing), : len(mixing)] / unit
        inside = (projected - projected.mT) @ mixing / 2
        dropped = self._dropped / unit @ mixing[: self._dropped.shape[1]]
        outside = torch.linalg.vector_norm(self.residuals(count) / unit, dim=0)
        return unit * outside, unit * torch.linalg.vector_norm(torch.cat([inside, dropped]), dim=0)

    def components(self, vectors: Tensor) -> Tensor:
        """Components of ``vectors`` (n, d) along Q (n, m)."""
        return (vectors @ self._store[: self.size].mT).to("cpu", torch.float64)

    def pairs_on(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks and residuals (n,) of the Ritz pairs of H on a subspace of orthonormal ``coordinates`` (n, m) in Q."""
        projected = self._symmetric
        values, mixing = torch.linalg.eigh(coordinates @ projected @ coordinates.mT)
        order = self._rank(values).argsort(descending=True, stable=True)
        vectors = coordinates.mT @ mixing[:, order]
        inside = projected @ vectors - vectors * values[order]
        outside = self._coupling @ vectors
        return self._rank(values[order]), torch.linalg.vector_norm(torch.cat([inside, outside]), dim=0)

    def shares(self, coordinates: Tensor, count: int) -> Tensor:
        """The squared norm of each Ritz vector's part in a subspace of orthonormal ``coordinates`` (n, m) in Q."""
        return (coordinates @ self._mixing[: coordinates.shape[1], :count]).square().sum(0)

    def vectors(self, count: int) -> Tensor:
        """The first ``count`` Ritz vectors (count, d)."""
        return self._mixing[:, :count].mT.to(self._store) @ self._store[: self.size]

    def compress(self, count: int) -> Tensor:
        """Keep the first ``count`` Ritz vectors, m → count, and return their coordinates S (m, count) in the old Q."""
        mixing, m = self._mixing[:, :count], self.size
        rotation = mixing.mT.to(self._store)
        for columns in self._store.split(CHUNK, dim=1):
            columns[:count] = rotation @ columns[:m]
        directions = self._store[m : self._rows].clone()
        self._coupled, self._rows = count, count + len(directions)
        self._store[count : self._rows] = directions
        turned = self._mixing.mT @ self._projected[:m, :m] @ mixing
        dropped = torch.cat([self._dropped @ mixing[: self._dropped.shape[1]], turned[count:]])
        self._dropped = torch.linalg.qr(dropped, mode="r").R  # of the same norms
        self._projected[:count, :count] = turned[:count]
        self._coupling = self._coupling @ mixing
        self.values, self._mixing = self.values[:count], torch.eye(count, dtype=torch.float64)
        return mixing
