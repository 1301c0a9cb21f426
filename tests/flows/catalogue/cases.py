"""Every row of the catalogue with each of its examples, and the smooth finite sum that they are tried on."""

import torch

from flows.catalogue.descents import DESCENTS
from flows.catalogue.flows import FLOWS
from landscapes import FiniteSum
from landscapes.wrappers.rotated import Rotated
from tests.tensors import draw

# name of a case: its row and its example. A new row is in all tests over ROWS, FLOW_ROWS and DESCENT_ROWS.
FLOW_ROWS = {f"{name} {key}".strip(): (row, e) for name, row in FLOWS.items() for key, e in row.examples.items()}
DESCENT_ROWS = {f"{name} {key}".strip(): (row, e) for name, row in DESCENTS.items() for key, e in row.examples.items()}
ROWS = FLOW_ROWS | DESCENT_ROWS  # what runs in two parts (state in, state out) is parametrised over these
QUIET = [name for name, (_, example) in FLOW_ROWS.items() if example.noise is None]
NOISY = [name for name in FLOW_ROWS if name not in QUIET]
FOLLOWING = [name for name, (row, _) in FLOW_ROWS.items() if row.descent is not None]


class Ripples(FiniteSum):
    """f_i = ½r² + 0.3 sin r with r = x_iᵀθ − y_i: smooth and holomorphic, by automatic differentiation."""

    holomorphic = True

    def __init__(self, features, targets):
        self.features, self.targets = features, targets

    @property
    def dimension(self):
        return self.features.shape[-1]

    @property
    def size(self):
        return len(self.features)

    def losses(self, theta, index=None):
        x, y = (self.features, self.targets) if index is None else (self.features[index], self.targets[index])
        r = (x.to(theta) * theta[..., None, :]).sum(dim=-1) - y.to(theta)
        return r * r / 2 + 0.3 * torch.sin(r)


RIPPLES = Ripples(draw(1, 6, 2), draw(2, 6))
THETA0 = torch.tensor([0.9, -1.3], dtype=torch.float64)


def turned(landscape):
    """A rotated sum of ripples as a sum: its features are rotated."""
    if not isinstance(landscape, Rotated):
        return landscape
    inner = landscape.landscape
    return Ripples(inner.features @ landscape.rotation.mT, inner.targets)
