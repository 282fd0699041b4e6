"""Runs the suite once for each kind of OpenBLAS kernels that this CPU has: `make test-cpus`.

Kernels for different CPUs add in another order, so that last bits differ. No test may hang on them. Where the
environment chooses the kernels itself, which some machines need for right results, only those are run.
"""

import os
import subprocess
import sys
from pathlib import Path

NEEDS = {"Prescott": "pni", "Zen": "avx2", "Haswell": "avx2", "SkylakeX": "avx512vl"}
"""Kernels, and the flag of the CPU without which they cannot run."""


def main() -> int:
    """The number of kinds of kernels under which the suite fails."""
    if chosen := os.environ.get("OPENBLAS_CORETYPE"):
        kernels = [chosen]
    else:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").split()
        kernels = [name for name, flag in NEEDS.items() if flag in flags]
    failed = []
    for name in kernels:
        print(f"OPENBLAS_CORETYPE={name}", flush=True)
        command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
        if subprocess.run(command, env=os.environ | {"OPENBLAS_CORETYPE": name}, check=False).returncode:
            failed.append(name)
    print(
        f"{len(kernels) - len(failed)} of {len(kernels)} kinds of kernels pass; failed: {', '.join(failed) or 'none'}"
    )
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
