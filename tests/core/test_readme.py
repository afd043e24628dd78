"""Every command in the README is run: here, or by the test or CI step named here; every file that a page names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# command in the README -> (file, text in it) that runs it
ELSEWHERE = {
    "make demo": (".ci/run", 'make demo VENV="$VENV"'),
    "make test": (".ci/run", 'make test VENV="$VENV"'),
    "make lint": (".ci/run", 'make lint VENV="$VENV"'),
    "make env": (".ci/run", 'make env VENV="$VENV"'),
    "make stop": (".ci/run", 'make stop VENV="$VENV"'),
    "ace train configs/examples/own-data.yaml --var data=DIR --var stats=DIR": (
        "tests/core/test_own_data.py",
        'CONFIG = "configs/examples/own-data.yaml"',
    ),
    "ace import fme CHECKPOINT -o OURS": (
        "tests/core/test_import_export.py",
        '("import", "fme", str(file), "-o", str(ours))',
    ),
    "ace export fme OURS -o THEIRS": (
        "tests/core/test_import_export.py",
        '("export", "fme", str(ours), "-o", str(theirs))',
    ),
    "ace downscale": ("tests/downscaling/test_stage.py", 'ace("downscale", path, "--root", root)'),
    "python -m deployments.up --keep": ("tests/flows/test_pipeline.py", '"deployments.up", "--keep"'),
    "prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml": (
        "deployments/up.py",
        'prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")',
    ),
    "prefect deployment run train-ace/train-ace": ("deployments/up.py", '"deployment", "run", "train-ace/train-ace"'),
    "prefect deployment run train-ace": ("tests/flows/test_pipeline.py", '"deployment", "run", "train-ace"]'),
}
# Not run by CI, as the README says: an environment of gigabytes, and timings.
NEVER = {"make peer", "make bench"}
SMALL = {
    "ace data prepare": ["runs.train.years=1", "runs.test.years=1", "truth.start_step=11", "truth.stop_step=41"],
    "ace train": ["max_epochs=1", "train_loader.dataset.subset.stop=64"],
    # Another seed, or it would find the training of one rank complete.
    "torchrun": ["max_epochs=1", "train_loader.dataset.subset.stop=64", "seed=1"],
    "ace evaluate": ["loader.start_indices.interval=50"],
    "ace respond": ["n_forward_steps=40", "spinup_steps=10"],
}


def commands() -> list[str]:
    """Every line of the README's shell blocks."""
    text = Path("README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def inline_commands() -> set[str]:
    """Every command in the README's running text: what stands between backticks and begins with a program's name."""
    text = re.sub(r"```.*?```", "", Path("README.md").read_text(), flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return {span for span in spans if re.match(r"(make|ace|torchrun|python|prefect|pip|bash) \S", span)}


def test_every_inline_command_is_run_too() -> None:
    inline = inline_commands()
    assert {"make lint", "make stop", "make env", "prefect deployment run train-ace"} | NEVER <= inline
    begun = {c for c in inline if any(line.startswith(f"{c} ") for line in commands())}  # like `ace train`
    assert inline - begun - set(ELSEWHERE) == NEVER
    text = " ".join(Path("README.md").read_text().split())
    assert "CI runs neither of these two" in text


def test_commands_run_elsewhere_are_really_there() -> None:
    for command, (file, phrase) in ELSEWHERE.items():
        assert command in {*commands(), *inline_commands()}, command
        code = [line for line in Path(file).read_text().splitlines() if not line.lstrip().startswith("#")]
        assert any(phrase in line for line in code), (command, file)


def test_the_pipeline_by_hand_runs_as_written(tmp_path: Path) -> None:
    """The README's own lines, in one shell, in a folder with the repository's configs; only sizes are cut down."""
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    mine = [c for c in commands() if c not in ELSEWHERE]
    assert len(mine) == 15, mine
    script = []
    for command in mine:
        small = next((v for k, v in SMALL.items() if command.startswith(k)), [])
        script.append(" ".join([command, *(f"--override {o}" for o in small)]))
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "land_ocean_warming_ratio/tropics" in run.stdout
    assert "made by        ace respond, run " in run.stdout
    assert len(list(tmp_path.glob("runs/by-hand/train-*/complete.json"))) == 2  # by one process, and by two ranks
    (inferred,) = tmp_path.glob("runs/by-hand/infer-*/autoregressive_predictions.nc")
    assert inferred.stat().st_size > 1e5


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p) for p in Path("docs").rglob("*.md"))])
def test_links_and_named_files_exist(page: str) -> None:
    text = Path(page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (Path(page).parent / target).exists(), (page, target)
    for target in re.findall(r"`((?:ace_core|configs|deployments|tasks|flows|tests|benchmarks)/[\w./-]+)`", text):
        assert Path(target).exists(), (page, target)
