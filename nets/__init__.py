"""Networks and data as landscapes."""

from nets.architectures import ARCHITECTURES, MLP, LeNet
from nets.data import Data, load_data
from nets.network import HolomorphicNetworkLandscape, NetworkLandscape

__all__ = [
    "ARCHITECTURES",
    "MLP",
    "Data",
    "HolomorphicNetworkLandscape",
    "LeNet",
    "NetworkLandscape",
    "load_data",
]
