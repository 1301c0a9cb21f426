"""Landscapes made of another one: counted, regularised, rotated, penalised."""
