"""What is on when nothing is said is what fme has on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ace_core.diagnostics.base import DiagnosticConfig
from ace_core.diagnostics.config import AggregatorConfig
from ace_core.errors import ConfigError
from tests.diagnostics.scenes import scene

LAYOUTS = json.loads((Path(__file__).parents[1] / "golden" / "fme_keys.json").read_text())["layouts"]
EVALUATOR = LAYOUTS["ace.aggregator.inference.main.InferenceEvaluatorAggregatorConfig"]


def test_defaults_of_every_kind_are_fmes() -> None:
    config, seen = AggregatorConfig(), 0
    for key, entry in EVALUATOR.items():
        ours = getattr(config, key, None)
        for one in ours if isinstance(ours, list) else [ours]:
            if not isinstance(one, DiagnosticConfig):
                continue
            seen += 1
            for name, known in LAYOUTS[entry["layouts"][0]].items():
                # A step has none, and what is normalised says so.
                if "default" in known and name not in ("target", "name"):
                    assert getattr(one, name) == known["default"], (key, name)
            assert one.get_name() == (LAYOUTS[entry["layouts"][0]].get("name", {}).get("default") or one.get_name()), (
                key
            )
    assert seen >= 11


def test_what_is_strict_is_refused_together() -> None:
    config = AggregatorConfig.model_validate(
        {
            "ensembles": [{"step": 2, "strict": True}],
            "noise_floor": {"enabled": True, "strict": True},
            "video": {"enabled": True, "variables": ["nonsense"]},
        }
    )
    with pytest.raises(ConfigError) as refused:
        config.build(scene(3))
    for said in ("several members", "two years", "nonsense"):
        assert said in str(refused.value)


def test_what_is_not_strict_is_left_out_and_who_asked_for_it_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    AggregatorConfig().build(scene(20))
    assert "ensemble_step_20" not in [r.getMessage().split()[1] for r in caplog.records if r.levelname == "WARNING"]
    built = AggregatorConfig.model_validate({"ensembles": [{"step": 20}]}).build(scene(20))
    assert [d.name for d in built.diagnostics if d.name.startswith(("ens", "power", "zonal"))] == [
        "power_spectrum",
        "zonal_mean",
    ]
    assert "ensemble_step_20 is left out: it needs several members" in caplog.text
