#!/usr/bin/env python3
"""Make stand-ins for the CUDA libraries that torch is linked with and a CPU-only run never calls.

usage: .venv/bin/python scripts/cuda_stubs.py        (needs gcc and nm)

`libtorch_python.so` cannot be loaded unless all of them are found. Each stub defines, with the symbol version that
torch asks for, every function torch wants from that library; calling one aborts the process. It saves 2.7 GB. The
CUDA runtime and CUPTI are not stubbed: torch calls them when it is imported.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# File name of each library, and how the names of its functions begin. Longer prefixes stand first, since a symbol
# goes to the first library that claims it.
LIBRARIES = {
    "libcublasLt.so.13": "cublasLt",
    "libcublas.so.13": "cublas",
    "libcudnn.so.9": "cudnn",
    "libcufft.so.12": "cufft",
    "libcufile.so.0": "cuFile",
    "libcurand.so.10": "curand",
    "libcusparseLt.so.0": "cusparseLt",
    "libcusparse.so.12": "cusparse",
    "libnccl.so.2": "nccl",
    "libnvrtc.so.13": "nvrtc",
    "libnvshmem_host.so.3": "nvshmem",
}
UNDEFINED = re.compile(r"\s*[Uwv] ([A-Za-z_]\w*)(?:@+(\S+))?$")
LOADED_ON_DEMAND = "torch_cuda_linalg"


def wanted_symbols(torch_lib: Path) -> dict[str, str | None]:
    """Undefined symbols of torch's own libraries, each with the version it is asked for (None: any)."""
    wanted: dict[str, str | None] = {}
    for library in sorted(torch_lib.glob("lib*.so")):
        if LOADED_ON_DEMAND in library.name:
            continue
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
        )
        for line in listing.stdout.splitlines():
            if found := UNDEFINED.match(line):
                wanted[found[1]] = found[2]
    return wanted


def build_stub(path: Path, symbols: dict[str, str | None]) -> None:
    """Compile one library that defines these symbols and nothing useful."""
    functions = "".join(f"void {name}(void) {{ abort(); }}\n" for name in symbols)
    source = f"void abort(void);\n{functions}int memcache_stub_marker;\n"
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-x", "c", "-", f"-Wl,-soname,{path.name}"]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as version_map:
        versions = sorted({version for version in symbols.values() if version})
        for version in versions:
            names = "".join(f" {name};" for name, asked in symbols.items() if asked == version)
            version_map.write(f"{version} {{{names} }};\n")
        version_map.flush()
        if versions:
            command.append(f"-Wl,--version-script={version_map.name}")
        subprocess.run([*command, "-o", str(path)], input=source, text=True, check=True)


def main() -> int:
    packages = Path(sysconfig.get_path("purelib"))
    folder = packages / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = wanted_symbols(packages / "torch" / "lib")
    made = 0
    for library, prefix in LIBRARIES.items():
        symbols = {name: wanted.pop(name) for name in sorted(wanted) if name.startswith(prefix)}
        build_stub(folder / library, symbols)
        made += len(symbols)
    print(f"{len(LIBRARIES)} stub libraries with {made} functions in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
