"""Folders that travel to a GPU with nothing else: `python bench/gpu/pack.py --minutes 12`.

    carry/code      what git tracks, without results and pictures
    carry/wheels    packages that the machine lacks, where --wheels names them
    carry/data-1    half of CIFAR-10 as lossless WebP sheets, where --data-dir holds it
    carry/data-2    the other half

Each is below 64 MiB, so that each call carries code, wheels and one half. The calls are printed. On
the machine card.py --part takes what came, and has the images once both halves have come.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 64 << 20
CALL_SECONDS = 550
SPLITS = ("train", "test")
_NOT_CARRIED = ("bench/results/", ".git")
_GRID = 32
"""Images along a side of a sheet: larger sheets compress no better, smaller ones worse."""
_PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["manylinux2014_x86_64"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folders and print the calls; return 1 where one is too large."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12, help="of the plan: 12, 25 or 40")
    parser.add_argument("--out", type=Path, default=ROOT / "carry")
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar10.npz")
    parser.add_argument("--wheels", nargs="*", default=(), metavar="NAME==VERSION")
    parser.add_argument("--python", default="3.12", help="version of the interpreter there")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    commit = pack_code(options.out / "code")
    if options.wheels:
        download(options.wheels, options.out / "wheels", options.python)
    if options.data_dir:
        pack_images(options.data_dir / "cifar10.npz", options.out)
    sizes = {folder: folder_bytes(folder) for folder in sorted(options.out.iterdir())}
    for folder, size in sizes.items():
        print(f"{size / 2**20:6.1f} MiB  {folder}")
    print(*calls(options, commit, list(sizes)), sep="\n")
    shared = sum(size for folder, size in sizes.items() if not folder.name.startswith("data-"))
    halves = [size for folder, size in sizes.items() if folder.name.startswith("data-")]
    largest = max(sizes.values(), default=0)
    if shared + max(halves, default=0) > LIMIT_BYTES:
        print(f"a call carries more than 64 MiB (its largest folder: {largest / 2**20:.1f} MiB)")
        return 1
    return 0


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def calls(options: argparse.Namespace, commit: str, folders: Sequence[Path]) -> Iterator[str]:
    """Yield a command for each call: the plan's minutes cut into calls of one length."""
    halves = [folder for folder in folders if folder.name.startswith("data-")]
    number = max(-(-int(60 * options.minutes) // CALL_SECONDS), len(halves), 1)
    seconds = int(60 * options.minutes / number)
    names = {folder.name for folder in folders}
    wheels = (
        "python3 -m pip install -q --no-index --no-deps --target /tmp/site wheels/*.whl && "
        "export PYTHONPATH=/tmp/site && "
        if "wheels" in names
        else ""
    )
    for call in range(1, number + 1):
        part = f" --part ../{halves[call - 1].name}" if call <= len(halves) else ""
        carried = sorted(names - {half.name for half in halves}) + part.split("../")[1:]
        yield f"# call {call} of {number}, in a folder that holds {', '.join(carried)}:"
        yield (
            f"{wheels}cd code && python3 bench/gpu/card.py --minutes {options.minutes:g}"
            f" --call {call} --seconds {seconds} --commit {commit}{part} --out $OUT"
        )


def pack_code(folder: Path) -> str:
    """Copy what git tracks, as it lies in the tree, without results; return the commit."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout

    for name in git("ls-files", "-z").split("\0"):
        if name and not name.startswith(_NOT_CARRIED) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "HEAD").strip() + dirty


def download(wheels: Sequence[str], folder: Path, python: str) -> None:
    """Fetch the named wheels for Linux on x86-64, without what they need."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, "--dest", str(folder), *wheels], check=True)


def pack_images(npz: Path, out: Path) -> None:
    """Write the images of an .npz as sheets, by turns into `data-1` and `data-2`, with labels."""
    with np.load(npz) as arrays:
        for split in SPLITS:
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
            sheets = -(-len(images) // _GRID**2)
            for number in range(sheets):
                half = out / f"data-{1 + number % 2}"
                half.mkdir(parents=True, exist_ok=True)
                part = images[number * _GRID**2 : (number + 1) * _GRID**2]
                Image.fromarray(sheet_of(part)).save(
                    half / f"{split}_{number:03d}.webp", lossless=True, method=4
                )
            for half in (out / "data-1", out / "data-2"):
                half.mkdir(parents=True, exist_ok=True)
                np.save(half / f"{split}_labels.npy", np.asarray(labels))
                about = {"sheets": sheets, "shape": images.shape}
                (half / f"{split}.json").write_text(json.dumps(about), encoding="utf-8")


def sheet_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay (N, H, W, 3) images row by row on one sheet, N at most the grid's; the rest is black."""
    height, width = images.shape[1:3]
    whole = np.zeros((_GRID**2, height, width, 3), np.uint8)
    whole[: len(images)] = images
    grid = whole.reshape(_GRID, _GRID, height, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(_GRID * height, _GRID * width, 3)


def images_of(sheet: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the images of `sheet_of`, black ones too."""
    grid = sheet.reshape(_GRID, height, _GRID, width, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(_GRID**2, height, width, 3)


def unpack_part(part: Path, folder: Path) -> Path | None:
    """Take a half that has come into `folder`; return it once it holds cifar10.npz, else None."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        shutil.copy(path, folder)
    npz = folder / "cifar10.npz"
    about = {
        split: json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        for split in SPLITS
    }
    if not npz.exists():
        for split in SPLITS:
            if len(list(folder.glob(f"{split}_*.webp"))) < about[split]["sheets"]:
                return None
        arrays: dict[str, Any] = {}
        for split in SPLITS:
            num, height, width, _ = about[split]["shape"]
            found = [
                images_of(np.asarray(Image.open(path).convert("RGB")), height, width)
                for path in sorted(folder.glob(f"{split}_*.webp"))
            ]
            arrays[f"x_{split}"] = np.concatenate(found)[:num]
            arrays[f"y_{split}"] = np.load(folder / f"{split}_labels.npy")
        np.savez(npz, **arrays)
    return folder


if __name__ == "__main__":
    sys.exit(main())
