import os
import subprocess
import sys

import pytest

PROBE = """
import sys
import torch
import unfreeze.commands.finetune, unfreeze.commands.pretrain  # no tensor is made by importing
from unfreeze.runtime.device import pick_device
if "ask" in sys.argv:
    pick_device("cpu")
print(torch.empty(2**20).data_ptr() % 4096)  # torch starts at a page what it asks large ones for
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")
def test_large_tensors_lie_on_large_pages():
    own = {name: v for name, v in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    told = [
        subprocess.run(
            [sys.executable, "-c", PROBE, *words],
            capture_output=True,
            text=True,
            check=True,
            env=own,
        ).stdout.strip()
        for words in ([], ["ask"])
    ]
    assert told[0] != "0" and told[1] == "0"
