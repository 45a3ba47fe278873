import pytest
from small_world import World


@pytest.fixture
def world(project, composed):
    return World(composed)
