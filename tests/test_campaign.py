"""scripts/campaign.py: that a short one runs and finds nothing, and that it would see a fault."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the campaign needs Linux", allow_module_level=True)

from campaign_damage import FAULTS, SAME, SILENT, TRACEBACK, UNKNOWABLE, judged, make_kinds

ROOT = Path(__file__).parents[1]


def test_a_short_campaign_finds_no_fault(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    command = [sys.executable, str(ROOT / "scripts" / "campaign.py"), "--quick", "--output", str(summary)]
    ended = subprocess.run(command, capture_output=True, text=True)
    text = summary.read_text()
    assert ended.returncode == 0, text + ended.stderr
    assert text.count("\n0 faults, in ") == 3
    assert "| 120 damaged checkpoints |" in text
    assert "| killed runs | 2 |" in text
    assert "| wrong commands | 24 |" in text
    for fault in FAULTS:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {fault} |"))
        assert line.endswith("| 0 |")


def test_a_campaign_would_see_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = make_kinds(tmp_path)[0]
    assert judged(intact, intact.folder, in_weights=True) == (SAME, "")
    other = replace(intact, rows=intact.rows + 1)
    assert judged(other, intact.folder, in_weights=True)[0] == SILENT
    assert judged(replace(other, has_digest=False), intact.folder, in_weights=True)[0] == UNKNOWABLE
    assert judged(replace(other, has_digest=False), intact.folder, in_weights=False)[0] == SILENT
    monkeypatch.setattr("projclust.hf.quantizer.read_headers", None)
    assert judged(intact, intact.folder, in_weights=True)[0] == TRACEBACK
