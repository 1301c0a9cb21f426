"""Landscapes in closed form, with their critical points."""
