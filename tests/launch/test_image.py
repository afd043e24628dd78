"""The image of pods."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def _instructions() -> list[list[str]]:
    text = (REPOSITORY / "deployments" / "Containerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_image_installs_as_the_makefile_does_and_copies_what_there_is() -> None:
    steps = _instructions()
    installed = [step[3:] for step in steps if step[:3] == ["RUN", "pip", "install"]]
    makefile = re.findall(
        r"\$\(BIN\)/python \$\(PIP\) (.*?);? ?\\?$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
    )
    assert len(makefile) == 2
    assert installed == [shlex.split(line.replace("[dev]", "[kubernetes]")) for line in makefile]
    sources = [source for step in steps if step[0] == "COPY" for source in step[1:-1]]
    assert {"constraints.txt", "pyproject.toml", "README.md", "configs"} < set(sources)
    assert [s for s in sources if not (REPOSITORY / s).exists()] == []
    order = [step[0] if step[0] != "COPY" else step[1] for step in steps]
    assert order.index("constraints.txt") < order.index("RUN", order.index("constraints.txt")) < order.index("ace_core")


def test_image_runs_as_the_user_of_the_pods_and_holds_no_secret() -> None:
    from tasks.kubernetes import USER

    steps = _instructions()
    assert steps[-1] == ["USER", f"{USER}:{USER}"]
    given = [word for step in steps if step[0] in ("ENV", "ARG") for word in step[1:]]
    assert [w for w in given if re.search(r"KEY|TOKEN|SECRET|PASSWORD|AUTH", w)] == []
