"""What the command line tells torch about the cores it may use."""

import os
import subprocess
import sys

import joblib
import pytest

from projclust.cli.derive import _heed_neighbours


@pytest.mark.parametrize(
    ("allowed", "given", "wanted"), [(1, None, "1"), (4, None, None), (1, "3", "3")], ids=["quota", "none", "given"]
)
def test_no_more_threads_than_a_quota_leaves(
    allowed: int, given: str | None, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: allowed)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    _heed_neighbours()
    assert os.environ.get("OMP_NUM_THREADS") == wanted
    assert os.environ["OMP_WAIT_POLICY"] == "active"  # what the user says is left alone


def test_it_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys\n"
        "import projclust.cli.derive as derive\n"
        "from projclust.cli.app import run\n"
        "heed = derive._heed_neighbours\n"
        "derive._heed_neighbours = lambda: (heed(), print('torch' in sys.modules))\n"
        "run(['inspect', '/nowhere'])\n"
        "import os; print(os.environ['OMP_WAIT_POLICY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "passive"]
