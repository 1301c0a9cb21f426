"""Discrete optimisers, one file a family."""
