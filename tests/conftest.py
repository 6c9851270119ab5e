import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("knowloc", deadline=None, derandomize=True)  # a busy machine is no failure, and a red run can be repeated
settings.load_profile("knowloc")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test depends on a hub
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    slow = [o for o in items if "slow" in o.keywords]
    gpu = [o for o in items if "gpu" in o.keywords]
    if not config.getoption("--slow"):
        for o in slow: o.add_marker(pytest.mark.skip(reason="slow; runs with --slow"))
    if gpu:
        import torch
        if not torch.cuda.is_available():
            for o in gpu: o.add_marker(pytest.mark.skip(reason="no CUDA"))


@pytest.fixture(scope="session")
def data_dir():
    "Samples of the public data sets (pararel/, ecbd/, ...)"
    path = Path(os.environ.get("KNOWLOC_DATA") or ROOT / "../shared/data")
    if not path.is_dir(): pytest.skip(f"no data at {path}; KNOWLOC_DATA says where")
    return path.resolve()
