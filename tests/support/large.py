"""Images larger than memory, made quickly and in pieces: noise, with a bar where the class says."""

import zipfile
from pathlib import Path

import numpy as np

CLASSES = 4


def write_npz(path: Path, count: int, side: int, *, tests: int = 100, compressed: bool = False) -> None:
    """x_train (count, side, side, 3), y_train, x_test, y_test: uint8, as numpy.savez writes them."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind, compresslevel=1) as archive:
        for part, number in (("train", count), ("test", tests)):
            labels = np.arange(number) % CLASSES
            with archive.open(f"x_{part}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (number, side, side, 3)}
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, number, 64):
                    member.write(images(labels[start : start + 64], side, start).data)
            with archive.open(f"y_{part}.npy", "w") as member:
                np.lib.format.write_array(member, labels)


def images(labels: np.ndarray, side: int, seed: int) -> np.ndarray:
    """uint8 (n, side, side, 3)."""
    drawn = np.frombuffer(np.random.default_rng(seed).bytes(len(labels) * side * side * 3), np.uint8)
    made = (drawn >> 1).reshape(len(labels), side, side, 3)
    for image, label in zip(made, labels, strict=True):
        image[label * side // CLASSES : (label + 1) * side // CLASSES] += 100
    return made
