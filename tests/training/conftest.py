"""What the tests of training share."""

import pytest


@pytest.fixture
def pictures():
    """For a test that looks at the pictures of a run."""


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Drawing takes longer than the runs of the other tests."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("mlx_convnextv2.training.run.pictures_of", lambda *_: {})
