"""Functions whose derivatives autograd gets wrong from some order on, for checks that must see it."""

import math

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


class RightTo(torch.autograd.Function):
    """sin(x + kπ/2), the k-th derivative of sin, whose own derivatives are right to ``order`` and wrong beyond."""

    @staticmethod
    def forward(ctx, x, order, k=0):
        ctx.save_for_backward(x)
        ctx.order, ctx.k = order, k
        return (x + k * math.pi / 2).sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if ctx.order == 1:
            return g * (x.detach() + (ctx.k + 1) * math.pi / 2).sin(), None, None
        return g * RightTo.apply(x, ctx.order - 1, ctx.k + 1), None, None
