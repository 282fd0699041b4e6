"""Builds a clean environment for each supported combination of packages and runs its part of the suite in it.

    python tests/environments.py [NAME ...] [--folder DIR]

Each takes some minutes and 2 GB. Ends with one line for each, and the exit code says whether all passed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("tests/hosts", "tests/test_api.py", "tests/test_registry.py")


@dataclass(frozen=True)
class Environment:
    """What is installed, and what is run.

    Args:
        packages: What pip installs together with the wheel of the working tree.
        tests: Arguments of pytest.
        extra: Of the wheel.
        free: Packages that constraints.txt does not decide.
        without: What is removed afterwards.
        then: What is installed without regard to what the wheel asks for.
    """

    packages: tuple[str, ...]
    tests: tuple[str, ...]
    extra: str = ""
    free: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    then: tuple[str, ...] = ()


ENVIRONMENTS = {
    "optimum-2.1": Environment(("optimum==2.1.0", "optimum-onnx==0.1.0"), HOSTS, extra="[onnx-export]"),
    "optimum-2.3": Environment(("optimum==2.3.0",), HOSTS, extra="[optimum]", free=("optimum", "optimum-onnx")),
    "no-optimum": Environment((), (*HOSTS, "tests/test_missing.py")),
    "no-neural-compressor": Environment((), ("tests/test_missing.py",), without=("neural-compressor",)),
    "onnxruntime-alone": Environment(
        (),
        (
            *("tests/test_missing.py", "tests/test_registry.py", "tests/quantizers/test_quantizers.py"),
            "tests/commands/test_tune_quantizer.py",
        ),
        without=("neural-compressor", "opencv-python-headless"),
        then=("numpy>=2", "onnx>=1.19"),
    ),
    "olive": Environment((), ("tests/hosts/test_olive.py", "tests/hosts/test_optuna.py"), extra="[olive]"),
}


def build(environment: Environment, wheel: Path, folder: Path) -> Path:
    """The Python of a fresh virtual environment."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [pin for pin in pins if pin.partition("==")[0] not in environment.free]
    (folder / "constraints.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    what = [f"{wheel}{environment.extra}", *environment.packages, "pytest", "hypothesis"]
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--constraint", str(folder / "constraints.txt"), *what], check=True)
    if environment.without:
        subprocess.run([*pip, "uninstall", "--yes", *environment.without], check=True)
    else:
        subprocess.run([*pip, "check"], check=True)
    if environment.then:
        subprocess.run([*pip, "install", "--upgrade", *environment.then], check=True)
    return python


def run(name: str, wheel: Path, folder: Path) -> tuple[bool, str]:
    """Whether a combination passes, and one line about it."""
    environment, began = ENVIRONMENTS[name], time.monotonic()
    folder.mkdir(parents=True)
    try:
        python = build(environment, wheel, folder)
    except subprocess.CalledProcessError as error:
        return False, f"cannot be built: {error}"
    command = [str(python), "-m", "pytest", *environment.tests]
    ran = subprocess.run(command, cwd=wheel.parent, capture_output=True, text=True)
    lines = ran.stdout.strip().splitlines() or ran.stderr.strip().splitlines()
    if ran.returncode:
        sys.stdout.write(ran.stdout + ran.stderr)
    return ran.returncode == 0, f"{lines[-1]} ({time.monotonic() - began:.0f} s with the installation)"


def main() -> int:
    """Runs those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, help="where the environments are built and stay")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"unknown environment '{unknown[0]}'; have: {', '.join(ENVIRONMENTS)}")
    with tempfile.TemporaryDirectory(prefix="qnas-") as temporary:
        folder = given.folder or Path(temporary)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "wheel"), str(ROOT)], check=True)
        wheel = next((folder / "wheel").glob("*.whl"))
        shutil.copytree(ROOT / "tests", folder / "wheel" / "tests")  # the package itself comes from the wheel alone
        shutil.copytree(ROOT / "examples" / "toy_supernet", folder / "wheel" / "examples" / "toy_supernet")
        shutil.copy(ROOT / "pyproject.toml", folder / "wheel")
        passed = True
        for name in given.names or ENVIRONMENTS:
            good, line = run(name, wheel, folder / name)
            passed &= good
            sys.stdout.write(f"{name:22} {'passed' if good else 'FAILED'}  {line}\n")
            sys.stdout.flush()
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
