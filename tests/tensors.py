"""Tensors that tests write out, and random ones that are the same for the same seed."""

import torch


def f64(*values):
    """A float64 tensor of these numbers, or of these rows."""
    return torch.tensor(values, dtype=torch.float64)


def c128(*values):
    """A complex128 tensor of these numbers."""
    return torch.tensor(values, dtype=torch.complex128)


def draw(seed, *shape, dtype=torch.float64, device="cpu"):
    """Standard normal numbers, the same for the same seed on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)


def draws(seed):
    """``draw(*shape)`` of one generator, whose draws go on where the last one ended."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
