"""What a person looks for in Prefect's UI, looked for in a real browser."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.ui.conftest import PASSWORD, Scene

pytestmark = pytest.mark.system

expect.set_options(timeout=20_000)  # milliseconds
STAGES = ("prepare", "train", "evaluate", "respond")


def open_run(page: Any, scene: Scene, run: str, tab: str | None = None) -> None:
    page.goto(f"{scene.ui}/runs/flow-run/{run}")
    if tab is not None:
        page.locator(".p-tab", has_text=tab).first.click()


def open_artifact(page: Any, scene: Scene, key: str) -> None:
    """From the run's page to the artifact, as a person finds it."""
    open_run(page, scene, scene.finished, "Artifacts")
    page.get_by_text(key, exact=True).last.click()
    expect(page.get_by_text("Show raw data").or_(page.locator("table")).first).to_be_visible()


def key_of(scene: Scene, stage: str) -> str:
    return str(scene.results[stage]["key"][:10])


def rendered_widths(page: Any) -> list[int]:
    """Of all pictures of the page that have arrived, in pixels of their own."""
    page.wait_for_function("[...document.querySelectorAll('img')].some(i => i.src.startsWith('data:') && i.complete)")
    widths = page.evaluate(
        "[...document.querySelectorAll('img')].filter(i => i.src.startsWith('data:')).map(i => i.naturalWidth)"
    )
    return [int(w) for w in widths]


def test_the_page_of_a_finished_run(page: Any, scene: Scene) -> None:
    open_run(page, scene, scene.finished)
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("train-ace").first).to_be_visible()
    expect(page.get_by_text("8 Task runs").first).to_be_visible()
    page.locator(".p-tab", has_text="Task Runs").click()
    for stage in STAGES:
        expect(page.get_by_text(re.compile(f"^{stage}-[0-9a-f]{{3}}$")).first).to_be_visible()
        expect(page.get_by_text(f"report of {stage}", exact=True).first).to_be_visible()


def test_the_log_names_stage_host_and_checkpoint(page: Any, scene: Scene) -> None:
    open_run(page, scene, scene.finished, "Logs")
    host = socket.gethostname()
    expect(page.get_by_text(f"stage prepare begins on host {host}").first).to_be_visible()
    checkpoint = "train-" + key_of(scene, "train") + "/training_checkpoints/best_ckpt.tar"
    lines = [
        re.compile(f"stage train ended on host {host} after .* s: results in .*, checkpoint .*{checkpoint}"),
        re.compile(f"stage respond begins on host {host}, process .*: checkpoint .*{checkpoint}"),
    ]
    for line in lines:
        shown = page.get_by_text(line).first
        for _ in range(40):  # further lines are fetched as one scrolls
            if shown.count():
                break
            page.mouse.wheel(0, 1500)
            page.wait_for_timeout(100)
        expect(shown).to_be_visible()


def test_progress_says_that_it_is_done(page: Any, scene: Scene) -> None:
    open_artifact(page, scene, f"progress-{key_of(scene, 'train')}")
    expect(
        page.get_by_text(re.compile(r"epoch 1 of 1, loss [\d.]+, validation loss [\d.]+.*, done")).first
    ).to_be_visible()
    expect(page.get_by_text("Progress: 100%")).to_be_visible()


def test_the_loss_curve_is_a_picture(page: Any, scene: Scene) -> None:
    open_artifact(page, scene, f"loss-curve-{key_of(scene, 'train')}")
    assert rendered_widths(page) == [990]  # 9 inches


def test_the_scorecard_has_a_row_for_each_variable(page: Any, scene: Scene) -> None:
    open_artifact(page, scene, f"scorecard-{key_of(scene, 'evaluate')}")
    table = page.locator("table").first
    for column in ("variable", "bias of time mean", "RMSE of time mean", "RMSE of steps"):
        expect(table.locator("th", has_text=re.compile(f"^{column}$"))).to_have_count(1)
    row = table.locator("tr", has_text=re.compile(r"^\s*air_temperature_0 \(K\)"))
    summary = scene.results["evaluate"]["summary"]
    expect(row.locator("td").nth(1)).to_have_text(f"{summary['time_mean/bias/air_temperature_0']:.4g}")
    expect(row.locator("td").nth(2)).to_have_text(f"{summary['time_mean/rmse/air_temperature_0']:.4g}")


def test_the_response_stands_beside_the_truth(page: Any, scene: Scene) -> None:
    open_artifact(page, scene, f"response-{key_of(scene, 'respond')}")
    table = page.locator("table").first
    heads = [text.strip() for text in table.locator("th").all_inner_texts()]
    assert heads[:6] == ["quantity", "units", "emulator", "truth", "error", "90 % interval"]
    row = table.locator("tr", has_text="global_warming")
    cells = dict(zip(heads, (text.strip() for text in row.locator("td").all_inner_texts())))
    assert cells["units"] == "K"
    emulator, truth = float(cells["emulator"]), float(cells["truth"])
    assert emulator == pytest.approx(scene.results["respond"]["summary"]["p4k/global_warming"], rel=1e-3)
    assert float(cells["error"]) == pytest.approx(emulator - truth, abs=1e-3 * (abs(emulator) + abs(truth)))
    assert 2.0 < truth < 6.0  # K, for 4 K at the sea surface


def test_maps_are_pictures(page: Any, scene: Scene) -> None:
    for stage, least in (("evaluate", 2), ("respond", 2)):
        open_artifact(page, scene, f"maps-{key_of(scene, stage)}")
        widths = rendered_widths(page)
        assert len(widths) >= least
        assert min(widths) > 300


def test_deployments_and_the_form_of_train_ace(page: Any, scene: Scene) -> None:
    page.goto(f"{scene.ui}/deployments")
    names = ("prepare-data", "train-ace", "evaluate-ace", "nightly-eval", "perturbation-response", "study")
    for name in names:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.locator("a", has_text=re.compile("^train-ace$")).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    choice = page.get_by_text("planet-response", exact=True)
    for _ in range(20):  # a form that has only just appeared does not open yet
        page.locator(".p-select-button__icon").first.click(force=True)
        page.wait_for_timeout(500)
        if choice.count():
            break
    choice.click()
    page.locator("textarea").first.fill("/somewhere/else/pipeline.yaml")
    for n, override in enumerate(("train.max_epochs=3", "ranks=1")):
        page.get_by_role("button", name="Add item").click()
        page.locator("textarea").nth(1 + n).fill(override)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile("/(runs|deployments)/"))
    run = until_created(scene)
    assert run["parameters"] == {
        "preset": "planet-response",
        "config_path": "/somewhere/else/pipeline.yaml",
        "overrides": ["train.max_epochs=3", "ranks=1"],
    }


def until_created(scene: Scene) -> dict[str, Any]:
    """The one run that the form has made."""
    import time

    for _ in range(100):
        body = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"is_null_": False}}}
        made = [
            r
            for r in post(scene, "/flow_runs/filter", body)
            if "checkpoint" not in r["parameters"] and r["parameters"].get("config_path")
        ]
        if made:
            [run] = made
            return dict(run)
        time.sleep(0.1)
    raise AssertionError("the form made no run")


def post(scene: Scene, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{scene.ui}/api{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_refused_run_says_everything_that_has_to_be_mended(page: Any, scene: Scene) -> None:
    open_run(page, scene, scene.refused, "Logs")
    expect(page.get_by_text("Refused", exact=True).first).to_be_visible()
    wanted = ("max_epoch: unknown key", "did you mean 'max_epochs'?", "n_forward_steps: 0")
    for text in wanted:
        expect(page.locator("body")).to_contain_text(text)
    page.locator(".p-tab", has_text="Details").first.click()
    page.get_by_text("See More").click()
    for text in wanted:
        expect(page.get_by_role("tabpanel", name="Details")).to_contain_text(text)


def test_a_server_with_a_password_opens_with_that_one_only(page: Any, locked: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{locked}/api/admin/version", timeout=20)
    page.goto(f"{locked}/runs")
    password = page.get_by_placeholder("admin:pass")
    password.fill("admin:wrong")
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text("Authentication failed.").first).to_be_visible()
    expect(password).to_be_visible()
    expect(page.get_by_text("seen-with-the-password")).to_have_count(0)
    password.fill(PASSWORD)
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text("seen-with-the-password").first).to_be_visible()
