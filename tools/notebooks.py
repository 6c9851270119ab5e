"""Run notebooks in place, by number and index last: python tools/notebooks.py [nbs/01_neurons.ipynb ...]

A cell marked `#| eval: false` keeps the outputs it has, and so does `#| gpu` unless KNOWLOC_DEVICE is cuda.
"""
import os
import sys
import time
from pathlib import Path

import nbformat
from fastcore.nbio import mk_cell
from nbclient import NotebookClient

NBS = Path(__file__).resolve().parent.parent / "nbs"


class Client(NotebookClient):
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        flags = mk_cell(cell.source).directives
        on_gpu = os.environ.get("KNOWLOC_DEVICE", "").startswith("cuda")
        if flags.get("eval") == "false" or ("gpu" in flags and not on_gpu): return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def run(path):
    print(f"{path.relative_to(NBS.parent)}: ", end="", flush=True)
    nb, start = nbformat.read(path, 4), time.time()
    Client(nb, timeout=3600, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": path.parent}}).execute()
    for cell in nb.cells:  # tqdm's notebook bar shows itself before it asks whether it is disabled
        if "outputs" in cell: cell.outputs = [o for o in cell.outputs if "%|" not in o.get("data", {}).get("text/plain", "")]
    nbformat.write(nb, path)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # no progress bars among the outputs
    given = [Path(p).resolve() for p in sys.argv[1:]]
    every = (p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
    for path in given or sorted(every, key=lambda p: (p.stem == "index", p.parent != NBS, p)): run(path)
