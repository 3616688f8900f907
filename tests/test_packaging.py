"""tasks/ and tools/ are folders at the top and import as latent_cot.tasks and latent_cot.tools."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import latent_cot
from tests.conftest import ROOT

NESTED = ("tasks", "tools")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NESTED)
def test_nested_package_is_a_relative_link_to_the_top_folder(name: str) -> None:
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("a source distribution holds no links; setup.py does their work")
    link = ROOT / "latent_cot" / name
    assert link.is_symlink(), "git did not check it out as a symbolic link"
    assert os.readlink(link) == f"../{name}"
    assert (ROOT / name / "__init__.py").is_file()


@pytest.mark.parametrize("name", NESTED)
def test_git_has_the_links(name: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    found = subprocess.run(
        ["git", "ls-files", "--stage", f"latent_cot/{name}"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert found.startswith("120000 "), found


@pytest.mark.parametrize("name", NESTED)
def test_nested_package_imports_under_its_full_name_only(name: str) -> None:
    importlib.import_module(f"latent_cot.{name}")
    plain = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert plain.returncode != 0
    assert "ImportError" in plain.stderr
    assert f"latent_cot.{name}" in plain.stderr


def test_every_nested_folder_of_modules_is_a_package() -> None:
    """find_packages drops a folder that has no __init__.py, without a word."""
    forgotten = [
        str(module.parent.relative_to(ROOT))
        for name in (*NESTED, "latent_cot")
        for module in (ROOT / name).rglob("*.py")
        if not (module.parent / "__init__.py").exists()
    ]
    assert not forgotten


def test_the_version_has_one_source(pyproject: dict[str, object]) -> None:
    project = pyproject["project"]
    assert isinstance(project, dict)
    assert "version" not in project
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", latent_cot.__version__)


def test_installed_metadata_agrees() -> None:
    try:
        installed = metadata.version("latent-cot")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert installed == latent_cot.__version__


def test_importing_the_package_loads_no_torch() -> None:
    """`latent-cot --help` and a task's own tests must not wait for it."""
    code = "import sys, latent_cot.types, latent_cot.model.weights; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def tracked() -> list[str]:
    """The files of the repository, without the links and what git and editors alone want."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_every_file_is_in_the_wheel_and_in_the_sdist(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    files, source = tracked(), tmp_path / "source"
    for name in [*files, *(f"latent_cot/{name}" for name in NESTED)]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    code = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, check=True)
    if kind == "wheel":
        (archive,) = tmp_path.glob("*.whl")
        held = set(zipfile.ZipFile(archive).namelist())
        packages = [name for name in files if name.startswith(("latent_cot/", *(f"{name}/" for name in NESTED)))]
        wanted = {name if name.startswith("latent_cot/") else f"latent_cot/{name}" for name in packages}
        strange = {name for name in held - wanted if ".dist-info/" not in name}
        assert not strange, "nothing else is installed"
    else:
        (archive,) = tmp_path.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            held = {name.partition("/")[2] for name in tar.getnames()}
        wanted = set(files)
    assert not wanted - held


def test_each_dependency_is_explained(pyproject: dict[str, object]) -> None:
    project = pyproject["project"]
    assert isinstance(project, dict)
    named = {re.split(r"[>=<~,\s\[]", one, maxsplit=1)[0] for one in project["dependencies"]}
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^\| `([\w.-]+)` \| .+ \| \d+ \|$", text, re.MULTILINE))
    extras = {*project["optional-dependencies"]}
    assert extras <= set(re.findall(r"`([\w-]+)`", text.partition("Extras:")[2]))


def test_what_converts_the_default_model_is_loaded_only_then() -> None:
    code = "import sys, latent_cot.run.session; sys.exit('gguf' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_package_is_marked_as_typed() -> None:
    assert Path(latent_cot.__file__).with_name("py.typed").is_file()


def test_both_ends_are_tested(pyproject: dict[str, object]) -> None:
    """With the oldest Python that is allowed and the newest that is claimed; by hand and on GitHub alike."""
    project = pyproject["project"]
    assert isinstance(project, dict)
    claimed = sorted(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    assert project["requires-python"] == f">={claimed[0]}"
    script = (ROOT / ".ci" / "bounds").read_text(encoding="utf-8")
    ends = dict(re.findall(r"^  (\w+)\) python=([\d.]+) ", script, re.MULTILINE))
    assert ends == {"lowest": claimed[0], "newest": claimed[-1]}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["bounds"]["strategy"]["matrix"]["end"] == [*ends]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", ".ci/bounds ${{ matrix.end }}"]
