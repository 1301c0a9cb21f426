"""Networks and data as landscapes."""

from nets.architectures import (
    ARCHITECTURES,
    MLP,
    VGG,
    AllCNN,
    LeNet,
    ResNet,
    VisionTransformer,
    WideResNet,
    build_network,
)
from nets.data import Data, load_data
from nets.datasets.errors import DataError
from nets.datasets.variants import limit_examples, noisy_labels, only_classes, pool_images, random_labels
from nets.derivatives import PiecewiseLinearWarning, UncheckedDerivativesWarning, WrongDerivativeError
from nets.ghost import GhostBatchLandscape
from nets.layers import AveragePool, BatchNorm, GroupNorm, LayerNorm
from nets.losses import LOSSES, binary_cross_entropy, cross_entropy, square_loss
from nets.network import HolomorphicNetworkLandscape, NetworkLandscape

__all__ = [
    "ARCHITECTURES",
    "LOSSES",
    "MLP",
    "VGG",
    "AllCNN",
    "AveragePool",
    "BatchNorm",
    "Data",
    "DataError",
    "GhostBatchLandscape",
    "GroupNorm",
    "HolomorphicNetworkLandscape",
    "LayerNorm",
    "LeNet",
    "NetworkLandscape",
    "PiecewiseLinearWarning",
    "ResNet",
    "UncheckedDerivativesWarning",
    "VisionTransformer",
    "WideResNet",
    "WrongDerivativeError",
    "binary_cross_entropy",
    "build_network",
    "cross_entropy",
    "limit_examples",
    "load_data",
    "noisy_labels",
    "only_classes",
    "pool_images",
    "random_labels",
    "square_loss",
]
