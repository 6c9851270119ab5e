"The repository is in order: notebooks, module code, README, site and package say the same thing."
import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from fastcore.nbio import read_nb
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import knowloc

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(ROOT / "settings.ini")


@pytest.fixture
def tree(tmp_path):
    "A copy of the repository's sources, to change freely"
    junk = shutil.ignore_patterns(".*", "_proc", "_docs", "build", "*.egg-info", "report", "runs", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path / "knowloc", symlinks=True, ignore=junk))


def modules(folder): return {p.name: p.read_text(encoding="utf-8") for p in (folder / "knowloc").glob("*.py")}


def test_modules_are_what_the_notebooks_export(tree, monkeypatch):
    for p in (tree / "knowloc").glob("*.py"):
        if p.name != "__init__.py": p.unlink()
    monkeypatch.chdir(tree)
    nbdev_export()
    want, have = modules(tree), modules(ROOT)
    assert sorted(have) == sorted(want), "a module without a notebook, or a notebook not yet exported: run nbdev-export"
    changed = [m for m in want if want[m] != have[m]]
    assert changed == [], "run nbdev-export after editing a notebook, nbdev-update after editing a module"


def test_notebooks_are_clean(tree):
    nbdev_clean(str(tree / "nbs"))
    changed = [p.name for p in NOTEBOOKS if p.read_bytes() != (tree / p.relative_to(ROOT)).read_bytes()]
    assert changed == [], "run nbdev-clean, and nbdev-install-hooks once"


@each_notebook
def test_notebook_is_executed(path):
    outputs = [o for c in read_nb(path).cells for o in c.get("outputs", [])]
    assert outputs, "no outputs: run make notebooks"
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == []
    assert path.stat().st_size < 2e6, "over 2 MB: smaller figures"


@each_notebook
def test_notebook_imports_no_higher_number(path):
    number = {p.stem[3:]: int(p.stem[:2]) for p in NOTEBOOKS if p.parent.name == "nbs" and p.stem[:2].isdigit()}
    own = number.get(path.stem[3:], 99) if path.parent.name == "nbs" else 99
    for cell in read_nb(path).cells:
        for node in ast.walk(ast.Module(cell.parsed_() or [], [])):
            names = [o.name for o in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom): names = [f"{node.module}.{o.name}" for o in node.names]  # from knowloc import model, too
            for name in names:
                module = name.partition("knowloc.")[2].partition(".")[0]
                assert number.get(module, -1) <= own, f"{path.stem} imports {module}, a higher number"


def test_readme_is_made_from_the_index():
    r = subprocess.run([sys.executable, ROOT / "tools/docs.py", "--readme", "--check"], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_site_lists_every_notebook():
    assert (ROOT / "nbs/_quarto.yml").is_symlink() and (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml"
    listed = re.findall(r"[\w/]+\.ipynb", json.dumps(yaml.safe_load((ROOT / "_quarto.yml").read_text())))
    have = [p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS]
    assert sorted(listed) == sorted(have), "the sidebar in _quarto.yml lists each notebook once"


def test_every_dependency_has_a_tested_version():
    pinned = {canonicalize_name(o.partition("==")[0]) for o in (ROOT / "constraints.txt").read_text().splitlines()}
    needed = {canonicalize_name(Requirement(o).name) for group in settings["dependencies"].values() for o in group.split()}
    assert needed <= pinned


def test_wheel(tree, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree], check=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    files = {n for n in wheel.namelist() if n.startswith("knowloc/")}
    meta, scripts = (wheel.read(next(n for n in wheel.namelist() if n.endswith(f))).decode() for f in ("/METADATA", "/entry_points.txt"))
    assert knowloc.__version__ == settings["metadata"]["version"] == re.search("^Version: (.*)", meta, re.M)[1]
    want = [Requirement(o) for o in settings["dependencies"]["runtime"].split()]
    assert [Requirement(o) for o in re.findall(r"^Requires-Dist: ([^;\n]*)$", meta, re.M)] == want
    assert "Provides-Extra: dev" in meta and "knowloc = knowloc.cli:main" in scripts and "knowloc._modidx:d" in scripts
    data = {p.relative_to(ROOT).as_posix() for pattern in ("*.py", "assets/*") for p in (ROOT / "knowloc").glob(pattern)}
    assert files == data, "the wheel ships knowloc/*.py and knowloc/assets/*, and nothing else"


@pytest.mark.slow
@pytest.mark.network
def test_make_sets_up_a_bare_clone(tree):
    subprocess.run(["make", "-C", tree, f"PYTHON={sys._base_executable}", ".venv/.ok"], check=True)
    subprocess.run([tree / ".venv/bin/knowloc", "--help"], cwd=tree.parent, check=True)
    subprocess.run([tree / ".venv/bin/python", "-m", "pip", "check"], check=True)
