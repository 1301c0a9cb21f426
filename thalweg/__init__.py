"""Thalweg: continuous-time models of gradient descent and SGD, integrated beside the discrete runs they describe.

Three packages under one name, for programs that would rather not import ``flows``, ``nets`` and ``landscapes`` from the
top level: ``thalweg.flows.compare is flows.compare``. Their rooms are imported from themselves: ``from flows.observers
import Loss``. ``python -m thalweg`` lists the experiments, and runs one by its name.
"""

from thalweg import flows, landscapes, nets

__version__ = "0.1.0"
__all__ = ["__version__", "flows", "landscapes", "nets"]
