"""The packages of the wheel: the experiments in scripts/ are installed as thalweg.scripts."""

from setuptools import find_packages, setup

LIBRARY = find_packages(include=["landscapes*", "nets*", "flows*", "thalweg*"])
EXPERIMENTS = [f"thalweg.{name}" for name in find_packages(include=["scripts*"])]

setup(packages=LIBRARY + EXPERIMENTS, package_dir={"thalweg.scripts": "scripts"}, package_data={"": ["py.typed"]})
