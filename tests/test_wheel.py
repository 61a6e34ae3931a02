"""What pip installs: every file of the package, and a command that runs from it alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import unfreeze

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "unfreeze"
build = pytest.importorskip("build")


def run(*words, cwd, **variables):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    made = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The folder with the wheel and the source distribution of a copy of the tree.

    Without build isolation, which would download setuptools.
    """
    copy = tmp_path_factory.mktemp("tree")
    # `build/` and egg-info of the working tree would end up in the wheel
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--no-isolation", copy, cwd=copy)
    return copy / "dist"


def package_files():
    return {
        f"unfreeze/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


@pytest.mark.slow
def test_wheel_and_source_hold_every_file_of_the_package(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("unfreeze/")}
    assert names == package_files()
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in package_files()} <= members
    assert {"LICENSE", "README.md", "pyproject.toml"} <= members


@pytest.mark.slow
def test_the_wheel_runs_where_it_is_installed(distributions, tmp_path, colours):
    """Installed without its dependencies, which are those of this environment.

    Torch and the rest are gigabytes: that pip finds them all is not tested here. docs/INSTALL.md
    has the command that installs the wheel with everything into a new environment.
    """
    (wheel,) = distributions.glob("*.whl")
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--disable-pip-version-check", "--target", target, wheel, cwd=elsewhere)
    where = {"cwd": elsewhere, "PYTHONPATH": str(target)}
    file = run(sys.executable, "-c", "import unfreeze; print(unfreeze.__file__)", **where)
    assert Path(file.strip()).is_relative_to(target)
    assert run(target / "bin" / "unfreeze", "--version", **where) == (
        f"unfreeze {unfreeze.__version__}\n"
    )
    colours(tmp_path / "photos", {"red": 2, "green": 2})
    # the page of `scan --out` is made of the templates in the wheel
    words = ["scan", tmp_path / "photos", "--out", "scanned", "--json"]
    assert '"usable": 4' in run(target / "bin" / "unfreeze", *words, **where)
    assert "<style>" in (elsewhere / "scanned" / "scan.html").read_text(encoding="utf-8")
