"""
Turns protos/ into optimizer/pb/v1: messages, gRPC stubs and their types. `make protos`; the result is committed.

What the compiler writes is changed in three ways. Packages: `llm.optimizer.v1` is the name on the wire, the code
lives in `optimizer.pb.v1`. Versions: the compiler stamps its own version into the code as the least runtime
that may load it, but the code uses only what the floors in pyproject.toml have, so the check of protobuf goes and that
of grpcio names the floor. Stubs: a file without a service gets none.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent
PACKAGE: Final = "llm/optimizer/v1"
MODULE: Final = "optimizer.pb.v1"
TARGET: Final = ROOT.parent / MODULE.replace(".", "/")
GRPC_FLOOR: Final = "1.80.0"  # as in pyproject.toml

_INIT: Final = '"""\nGenerated from protos/llm/optimizer/v1 by protos/generate.py; do not edit.\n"""\n'
_CHANGES: Final = (
    (re.compile(r"^# Protobuf Python Version: .*\n", re.M), ""),
    (re.compile(r"^from google\.protobuf import runtime_version as _runtime_version\n", re.M), ""),
    (re.compile(r"^_runtime_version\.ValidateProtobufRuntimeVersion\(\n(?:    .*\n)*\)\n", re.M), ""),
    (re.compile(r"^GRPC_GENERATED_VERSION = '.*'$", re.M), f"GRPC_GENERATED_VERSION = '{GRPC_FLOOR}'"),
    (re.compile(r"^(from|import) llm\.optimizer\.v1\b", re.M), rf"\1 {MODULE}"),
)


def generate() -> dict[str, str]:
    """
    The generated files, name to text, made afresh.

    Raises:
        subprocess.CalledProcessError: the compiler refused; it has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
        outputs += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
        sources = sorted(str(path) for path in (ROOT / PACKAGE).glob("*.proto"))
        # the plug-ins of mypy-protobuf are console scripts beside this interpreter
        plugins = [
            f"--plugin=protoc-gen-{kind}={Path(sys.executable).parent / f'protoc-gen-{kind}'}"
            for kind in ("mypy", "mypy_grpc")
        ]
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *plugins, *outputs, *sources]
        subprocess.run(command, check=True)  # noqa: S603 - our own interpreter, our own arguments
        written = {path.name: _fixed(path.read_text()) for path in sorted((Path(folder) / PACKAGE).iterdir())}
    return {"__init__.py": _INIT} | {name: text for name, text in written.items() if not _is_empty(name, text)}


def _is_empty(name: str, text: str) -> bool:
    return "_pb2_grpc." in name and "Stub" not in text


def _fixed(text: str) -> str:
    for pattern, replacement in _CHANGES:
        text = pattern.sub(replacement, text)
    return text


def main() -> None:
    """
    Replace what is in optimizer/pb/v1.
    """
    files = generate()
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in TARGET.glob("*.py*"):
        path.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)


if __name__ == "__main__":
    main()
