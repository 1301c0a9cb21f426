import pytest

from tests.flows.catalogue.cases import RIPPLES


@pytest.fixture(scope="session")
def toy():
    """The smooth finite sum of all cases."""
    return RIPPLES
