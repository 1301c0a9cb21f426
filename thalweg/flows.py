"""The public names of ``flows``."""

from flows import *  # noqa: F403
from flows import __all__  # noqa: F401
