"""Implicit compared with explicit regularisation: the effect of a learning rate, and of the equivalent penalty."""
