import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "lrp", deadline=None, max_examples=12, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("lrp")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)
