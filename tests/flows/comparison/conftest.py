"""What tests of comparisons share."""

import pytest

from landscapes import LinearRegression


@pytest.fixture
def regression(normal):
    """Six examples in the plane."""
    return LinearRegression(normal(0, 6, 2), normal(1, 6))
