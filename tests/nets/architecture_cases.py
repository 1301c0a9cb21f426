"""Small versions of every architecture, for tests: image shape, classes and width that leave a few thousand weights."""

import torch

from nets import ARCHITECTURES, NetworkLandscape, build_network, cross_entropy

# name: images and width; the default is 8×8 colour images at a tenth of the paper's width
SHAPES = {
    "mlp": ((1, 5, 5), 0.3),
    "walk-mlp": ((1, 5, 5), 0.02),
    "small-mnistfc": ((1, 5, 5), 0.2),
    "small-fc": ((1, 7, 7), 0.2),
    "tiny-fc": ((1, 7, 7), 0.5),
    "shwartz-ziv": ((12,), 1.0),
    "polynomial-mlp": ((1, 5, 5), 0.3),
    "lenet": ((1, 8, 8), 0.3),
    "polynomial-lenet": ((1, 8, 8), 0.3),
    "hessian-lenet": ((1, 22, 22), 0.2),
    "small-lenet": ((1, 22, 22), 0.2),
    "entropy-sgd-lenet": ((1, 22, 22), 0.1),
    "all-cnn-c": ((3, 12, 12), 0.04),
    "all-cnn-bn": ((3, 12, 12), 0.04),
    "small-allcnn": ((3, 12, 12), 0.2),
    "vgg-11": ((3, 16, 16), 0.02),
    "resnet-18": ((3, 8, 8), 0.02),
    "resnet-56": ((3, 8, 8), 0.1),
    "wide-resnet-16-4": ((3, 8, 8), 0.05),
    "wide-resnet-28-10": ((3, 8, 8), 0.015),
    "vit": ((3, 8, 8), 0.1),
}
CLASSES, EXAMPLES = 3, 4


def small(name, **options):
    """The architecture in float64 with few weights, all different and none zero, and its landscape."""
    shape, width = SHAPES.get(name, ((3, 8, 8), 0.1))
    module = build_network(name, shape, CLASSES, width=width, **options).double()
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64)
    return module, NetworkLandscape(module, cross_entropy, inputs, torch.arange(EXAMPLES) % CLASSES)


NAMES = list(ARCHITECTURES)
