"""In the kernel of a real notebook: bars, results, errors and interruption."""

import json
import re

import pytest

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Kernel:
    """A kernel; `run` returns the messages of a cell, and may interrupt it."""

    def __init__(self, folder):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, code, interrupt_at=None):
        cell, messages = self.client.execute(code), []
        while True:
            message = self.client.get_iopub_msg(timeout=240)
            if message["parent_header"].get("msg_id") != cell:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return messages
            messages.append((kind, content))
            if interrupt_at and re.search(interrupt_at, json.dumps(content.get("data", {}))):
                interrupt_at = None
                self.manager.interrupt_kernel()

    def value(self, code):
        """The `repr` of the expression at the end of `code`."""
        (result,) = [c for kind, c in self.run(code) if kind == "execute_result"]
        return result["data"]["text/plain"]

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


BAR = """
from unfreeze.runtime.notebook import python_console
console = python_console()
with console.progress("finetune", 40) as advance:
    for step in range(40):
        console.clock = (lambda now=console.clock(): now + 1)
        advance(1, "epoch 1/3")
"""
RESULT = """
from dataclasses import dataclass
from PIL import Image
from unfreeze.runtime.display import Display, Displayed
Image.new("RGB", (3000, 100), "red").save("curves.png")

@dataclass(frozen=True, repr=False)
class Result(Displayed):
    run: str
    def display(self):
        return Display(lead=["It <works>."], plots=[("curves", "curves.png")])
Result("a")
"""
SIZE = """
import base64, io
from unfreeze.runtime.display import png_for_notebook
Image.open(io.BytesIO(base64.b64decode(png_for_notebook("curves.png")))).size
"""


def test_bars_results_and_errors(kernel):
    """One bar that is updated; HTML and curves of a result; an error without a traceback."""
    shown = kernel.run(BAR)
    kinds = [kind for kind, content in shown if "data" in content]
    assert kinds[:2] == ["display_data", "update_display_data"] and set(kinds[1:]) == {kinds[1]}
    drawn = [content for _, content in shown if "data" in content]
    assert len({content["transient"]["display_id"] for content in drawn}) == 1
    assert "epoch 1/3" in drawn[1]["data"]["text/html"] and drawn[-1]["data"]["text/html"] == ""
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", json.dumps([c["data"] for c in drawn]))

    page, curves = [c["data"] for kind, c in kernel.run(RESULT) if kind == "display_data"]
    assert "It &lt;works&gt;." in page["text/html"] and page["text/plain"] == "It <works>."
    assert curves["text/plain"] == "curves: curves.png" and curves["image/png"]
    assert kernel.value("_.run") == "'a'"  # the result can still be used
    assert kernel.value(SIZE) == "(1000, 33)"

    raised = "from unfreeze.errors import DataError\nraise DataError('No images.', 'Add some.')"
    ((_, error),) = [m for m in kernel.run(raised) if m[0] == "error"]
    assert error["traceback"] == ["DataError: No images.\nAdd some."]
    bug = "from unfreeze.errors import UnfreezeError\nraise UnfreezeError('A bug.')"
    ((_, error),) = [m for m in kernel.run(bug) if m[0] == "error"]
    assert "Traceback" in error["traceback"][0] and "A bug." in error["traceback"][-1]


EQUAL = """
from safetensors.torch import load_file
one, other = (load_file(f"{run}/model/model.safetensors") for run in ("stopped", "whole"))
all(one[name].equal(other[name]) for name in one)
"""


@pytest.mark.slow
def test_an_interrupted_cell_resumes_exactly(kernel):
    """■ in a notebook: a checkpoint and a sentence; resumed, the run equals a whole one."""
    settings = "epochs=4, checkpoint_every=4, seed=0, device='cpu'"
    kernel.run("import os; os.environ['OMP_NUM_THREADS'] = '1'\nimport unfreeze")
    stopped = kernel.run(
        f"unfreeze.pretrain('digits', out='stopped', {settings})",
        interrupt_at=r'pretrain <progress value=\\"[1-9]',
    )
    ((_, error),) = [m for m in stopped if m[0] == "error"]
    assert error["ename"] == "Interrupted" and len(error["traceback"]) == 1
    sentence, next_step = error["traceback"][0].split("\n")
    assert re.search(r"Stopped by Ctrl-C after step \d+ of 88", sentence)
    assert next_step == "Resume with: unfreeze.pretrain('digits', out='stopped', resume=True)"
    assert kernel.value("os.listdir('stopped/checkpoints')") == "['last.ckpt']"
    assert not any(kind == "stream" and c["name"] == "stderr" for kind, c in stopped)

    resumed = kernel.run(f"unfreeze.pretrain('digits', out='stopped', resume=True, {settings})")
    assert [kind for kind, c in resumed if "image/png" in c.get("data", {})]  # its curves
    kernel.run(f"unfreeze.pretrain('digits', out='whole', progress=False, {settings})")
    assert kernel.value(EQUAL) == "True"
