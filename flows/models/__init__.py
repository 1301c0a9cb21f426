"""Continuous-time models, one file per family."""
