"""What computes: processor, graphics cards, how TensorFlow is told to compute, and the code of this package."""

import hashlib
import os
import platform
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..environment import PACKAGE

FLAGS = (  # environment variables that change how TensorFlow, oneDNN, XLA and NVIDIA's libraries compute
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "TF_DISABLE_MKL",
    "TF_ENABLE_AUTO_MIXED_PRECISION",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "DNNL_DEFAULT_FPMATH_MODE",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "TF_CUDNN_USE_AUTOTUNE",
    "TF_CUDNN_USE_FRONTEND",
    "CUDA_VISIBLE_DEVICES",
)
EXTENSIONS = re.compile(r"(sse4|avx|fma|f16c|amx|asimd|sve|neon|bf16|i8mm)\w*")  # of what a vector unit can do


@lru_cache(1)
def machine() -> dict[str, Any]:
    """processor: its model; extensions: of its vector unit; gpus: models; flags: those of FLAGS that are set."""
    processor, extensions = _processor()
    flags = {name: os.environ[name] for name in FLAGS if os.environ.get(name)}
    return {"processor": processor, "extensions": extensions, "gpus": _gpus(), "flags": flags}


@lru_cache(1)  # a process runs the code it has imported, also when files change meanwhile
def code_sha256() -> str:
    """SHA-256 (hex) over names and bytes of this package's .py files: git's commit misses what is not committed."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name, content = path.relative_to(PACKAGE).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _processor() -> tuple[str, list[str]]:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(errors="replace")
        fields = dict(reversed(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE)))  # of the first one
        words = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
        model = fields.get("model name") or fields.get("CPU part") or ""
        return f"{model} {platform.machine()}".strip(), sorted(word for word in words if EXTENSIONS.fullmatch(word))
    return f"{platform.processor()} {platform.machine()}".strip(), []


def _gpus() -> list[str]:
    """Asked of the driver's files, as TensorFlow would have to be imported."""
    found = []
    with suppress(OSError):
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            found += re.findall(r"^Model:\s*(.*)$", path.read_text(errors="replace"), re.MULTILINE)
    return found
