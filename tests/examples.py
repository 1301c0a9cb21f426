"""How many examples a property has whose examples are dear."""

from hypothesis import settings

ORDINARY, SOAKED = 25, 500  # of a property that says nothing, in `make test` and in `make soak`


def few(count):
    """``count`` examples in `make test`, and as many times more in `make soak` as other properties have there."""
    return settings(max_examples=count * settings.default.max_examples // ORDINARY)
