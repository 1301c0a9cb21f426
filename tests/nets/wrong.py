"""A function whose second derivative autograd gets wrong, for checks that must see it."""

import torch


class WrongSlope(torch.autograd.Function):
    """sin, with a backward pass that the next derivative cannot see through."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.detach().cos()
