"""The GPU benchmark runs alone, on a CPU too: torch and numpy are all it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
ABSENT = ("pydantic", "zarr", "xarray", "prefect", "dask", "netCDF4", "yaml", "fme")


def test_it_needs_torch_and_numpy_only_and_is_right_before_it_is_timed(tmp_path: Path) -> None:
    program = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv = ['gpu.py', '--out', {str(tmp_path)!r}, '--device', 'cpu', '--small', '--repeats', '2']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert set(result["errors"]) == {"ace2", "stochastic"}
    for found in result["errors"].values():
        assert 0.0 < found["output"] < 2e-5
        assert 0.0 < found["gradient"] < 2e-4
    rows = {(r["configuration"], r["precision"]): r for r in result["rows"]}
    assert set(rows) == {(c, p) for c in result["errors"] for p in ("float32", "bf16")}
    for (name, precision), row in rows.items():
        batch = result["configurations"][name]["batch"]
        assert row["years_per_day"] == pytest.approx(86400 * batch / (1460 * row["rollout"]))
        # float32 is its own reference; bf16 keeps 8 bits, and forty corrected steps do not lose the trajectory.
        low, high = (0.0, 0.0) if precision == "float32" else (1e-4, 0.3)
        assert low <= row["rms_error_1"] <= row["rms_error_40"] * 3 + 1e-12 <= 3 * high + 1e-12
    assert "| ace2 | float32 | eager |" in (tmp_path / "gpu.md").read_text()


def test_a_wrong_network_is_not_timed(tmp_path: Path) -> None:
    program = (
        f"import sys, runpy; sys.path[:0] = [{str(SCRIPT.parent)!r}]\n"
        "import gpu\n"
        "gpu.TOLERANCE['output'] = 1e-12\n"
        f"sys.exit(gpu.main(['--out', {str(tmp_path)!r}, '--device', 'cpu', '--small']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "not timed, because it is wrong against float64:\n  ace2: output" in run.stdout
    assert "rows" not in json.loads((tmp_path / "gpu.json").read_text())
