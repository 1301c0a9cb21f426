"""Landscapes that wrap another one: counted, regularised, rotated, penalised."""
