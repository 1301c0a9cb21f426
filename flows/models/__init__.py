"""Continuous-time models, one file a family."""
