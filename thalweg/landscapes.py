"""The public names of ``landscapes``."""

from landscapes import *  # noqa: F403
from landscapes import __all__  # noqa: F401
