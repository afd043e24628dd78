"""The tables of the UI, from numbers that a stage left; without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ace_core import stages
from ace_core.errors import ConfigError
from ace_core.pipeline import Alerts, load_pipeline
from tasks.report import against_truth, scorecard, summary_rows

PIPELINE = Path(__file__).with_name("pipeline") / "pipeline.yaml"


def test_a_summary_of_hundreds_of_numbers_keeps_those_of_no_variable() -> None:
    few = {"b": 2.0, "a/x": 0.123456789, "what": "words"}
    assert summary_rows(few) == [
        {"quantity": "a/x", "value": "0.123457"},
        {"quantity": "b", "value": "2"},
        {"quantity": "what", "value": "words"},
    ]
    many: dict[str, float | str] = {f"loss/{i:03}": float(i) for i in range(200)}
    assert summary_rows(many | {"epochs": 8.0}) == [
        {"quantity": "epochs", "value": "8"},
        {"quantity": "and 200 more", "value": "in complete.json"},
    ]
    *shown, more = summary_rows(many)
    assert [row["quantity"] for row in shown] == [f"loss/{i:03}" for i in range(40)]
    assert more == {"quantity": "and 160 more", "value": "in complete.json"}


def test_a_scorecard_has_variables_as_rows_and_only_columns_that_were_measured() -> None:
    scores = {
        "time_mean/bias/PRESsfc": -4.712306,
        "time_mean/rmse/PRESsfc": 204.6,
        "time_mean/rmse/PRATEsfc": None,
        "time_mean/rmse/channel_mean": 1.0,
        "mean/weighted_rmse/PRATEsfc": 5e-05,
        "something/else/PRESsfc": 3.0,
    }
    assert scorecard(scores) == [
        {"variable": "PRESsfc (Pa)", "bias of time mean": "-4.712", "RMSE of time mean": "204.6", "RMSE of steps": ""},
        {
            "variable": "PRATEsfc (kg/m**2/s)",
            "bias of time mean": "",
            "RMSE of time mean": "",
            "RMSE of steps": "5e-05",
        },
    ]


def row(name: str, estimate: float, reference: float | None, label: str = "p4k", **more: Any) -> dict[str, Any]:
    given = {"name": name, "label": label, "units": "K", "long_name": name.upper(), "low": None, "high": None}
    return given | {"estimate": estimate, "reference": reference} | more


def test_a_response_shows_what_the_truth_is_known_of() -> None:
    rows = [
        row("warming", 4.5, 4.0, low=3.25, high=5.0),
        row("unknown", 1.0, None),
        row("nothing", 1.0, float("nan")),
        row("prescribed", 4.0, 4.00000000000006),
        row("lost", float("nan"), 2.0),
    ]
    shown = against_truth(rows)
    assert [r["quantity"] for r in shown] == ["warming", "prescribed", "lost"]
    assert [r["error"] for r in shown] == ["0.5", "0", ""]
    assert shown[0]["90 % interval"] == "3.25 .. 5"
    assert shown[2]["emulator"] == shown[1]["90 % interval"] == ""
    assert "arm" not in shown[0]
    both = [row("warming", 1.0, 1.0), row("warming", 2.0, 2.0, label="p2k")]
    assert [r["arm"] for r in against_truth(both)] == ["p4k", "p2k"]
    # Of what has no truth at all, everything.
    assert [r["quantity"] for r in against_truth([row("a", 1.0, None), row("b", 2.0, None)])] == ["a", "b"]


def test_alerts_are_a_key_of_the_pipeline() -> None:
    assert load_pipeline(PIPELINE).alerts == Alerts(silent_minutes=10, stalled_epochs=5, free_disk_gb=10)
    changed = load_pipeline(PIPELINE, ["alerts.silent_minutes=null", "alerts.stalled_epochs=3"]).alerts
    assert (changed.silent_minutes, changed.stalled_epochs, changed.free_disk_gb) == (None, 3, 10)
    with pytest.raises(ConfigError, match=r"alerts\.silent_minutes: 0"):
        load_pipeline(PIPELINE, ["alerts.silent_minutes=0"])
    with pytest.raises(ConfigError, match="did you mean 'stalled_epochs'"):
        load_pipeline(PIPELINE, ["alerts.stalled_epoch=1"])


def test_the_folder_of_a_stage_follows_its_configuration_and_one_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.tar").write_bytes(b"some weights")
    file, variables = (
        PIPELINE.with_name("evaluate.yaml"),
        {"data": str(tmp_path), "checkpoint": f"{tmp_path}/checkpoint.tar"},
    )
    first = stages.folder_of(file, tmp_path / "runs", [], variables)
    assert first.parent == tmp_path / "runs"
    assert first.name.startswith("evaluate-")
    assert stages.folder_of(file, tmp_path / "runs", [], variables) == first
    assert stages.folder_of(file, tmp_path / "runs", ["n_forward_steps=7"], variables) != first
    (tmp_path / "checkpoint.tar").write_bytes(b"others")
    assert stages.folder_of(file, tmp_path / "runs", [], variables) != first
    own = [f"experiment_dir={tmp_path}/mine"]
    assert stages.folder_of(file, tmp_path / "runs", own, variables) == tmp_path / "mine"
