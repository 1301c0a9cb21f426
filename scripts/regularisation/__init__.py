"""Implicit against explicit regularisation: what a learning rate does to training, and the same by a penalty."""
