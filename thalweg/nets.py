"""The public names of ``nets``."""

from nets import *  # noqa: F403
from nets import __all__  # noqa: F401
