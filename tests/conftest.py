"""Every run of the tests draws the same numbers; `--hypothesis-profile=default` looks further."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")
torch.manual_seed(0)  # models that a test module makes while it is imported


@pytest.fixture(autouse=True)
def seeded():
    """Start each test from the same seed, whichever ran before it."""
    torch.manual_seed(0)
