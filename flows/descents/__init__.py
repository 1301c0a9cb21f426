"""Discrete optimisers, one file per family."""
