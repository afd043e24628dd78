"""What the log of a training says of it while it runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace_core.telemetry import MetricsLog, MetricsTail, read_metrics
from ace_core.training.course import Course, in_words
from ace_core.training.figures import loss_curve


def course(*records: dict[str, object], max_epochs: int = 4, batches: int | None = 10) -> Course:
    made = Course(max_epochs, batches)
    for record in records:
        made.add(record)
    return made


def test_done_counts_batches_where_their_number_is_known_and_epochs_where_not() -> None:
    assert course({"step": 5, "batch_loss": 1.0}).done == 5 / 40
    assert course({"step": 5, "batch_loss": 1.0}, batches=None).done == 0.0
    learnt = course({"step": 20, "epoch": 2, "val_loss": 1.0}, {"step": 25, "batch_loss": 1.0}, batches=None)
    assert learnt.batches_per_epoch == 10
    assert learnt.done == 25 / 40
    assert course({"step": 40, "epoch": 4, "val_loss": 1.0}).done == 1.0
    assert course({"step": 0, "epoch": 0, "val_loss": 1.0}, max_epochs=0).done == 1.0


def test_the_line_for_a_person() -> None:
    batch = {"step": 25, "batch_loss": 0.12341, "training_samples_per_second": 455.7}
    assert course(batch).words(130.0) == "epoch 3 of 4, loss 0.1234, 456 samples/s, 2 min left"
    assert course({"step": 0, "batch_loss": 189.7}).words(None) == "epoch 1 of 4, loss 189.7"
    # All batches of the epoch are trained, and it is being validated.
    assert course(batch | {"step": 10}).words(None).startswith("epoch 1 of 4")
    after = course({"step": 10, "epoch": 1, "val_loss": 0.5, "train/mean/loss": 0.7})
    assert after.words(3.4) == "epoch 2 of 4, loss 0.7, validation loss 0.5, 3 s left"
    assert course({"step": 40, "epoch": 4, "val_loss": 0.5}).words(9.0) == "epoch 4 of 4, validation loss 0.5, done"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599.0, "1 h 0 min"),
        (5400.0, "1 h 30 min"),
        (86399.0, "1 d 0 h"),
        (100 * 3600.0, "4 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_epochs_without_gain_count_from_the_best_and_from_nothing_that_is_not_finite() -> None:
    losses: list[float | None] = [None, 3.0, 1.0, 1.0, 2.0, None]
    records = [{"step": 10 * i, "epoch": i, "val_loss": loss} for i, loss in enumerate(losses)]
    assert course(*records[:1]).best is None
    assert [course(*records[: i + 1], max_epochs=9).epochs_without_gain for i in range(6)] == [0, 0, 0, 1, 2, 3]
    assert course(*records).best == (2, 1.0)
    assert [course(*records[: i + 1]).diverged for i in range(6)] == [True, False, False, False, False, True]
    assert not course().diverged


@given(
    first=st.lists(st.integers(0, 400), min_size=1, max_size=20),
    second=st.lists(st.integers(1, 400), min_size=1, max_size=20),
    data=st.data(),
)
def test_a_tail_knows_the_records_of_the_file_however_it_is_cut_and_grows(
    first: list[int], second: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    tail, known = MetricsTail(path), []

    def look() -> None:
        records, again = tail.new()
        if again:
            known.clear()
        known.extend(records)
        assert known == (read_metrics(path) if path.exists() else [])

    look()
    log = MetricsLog(path)
    for i, size in enumerate(first):
        log.write(i, {"x": "a" * size, "nan": math.nan})
        if data.draw(st.booleans()):
            look()
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    keep = data.draw(st.integers(0, len(lines)))
    resumed = MetricsLog(path, sum(map(len, lines[:keep])))
    if data.draw(st.booleans()):
        look()
    for i, size in enumerate(second):
        resumed.write(keep + i, {"y": "b" * size})
    with path.open("ab") as torn:
        torn.write(b'{"step": 7, "y"')
    look()
    assert len(known) == keep + len(second)
    resumed.close()


def test_a_curve_of_a_training_that_has_only_begun(tmp_path: Path) -> None:
    from matplotlib.image import imread

    log, picture = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    log.write_text("")
    loss_curve(log, picture)
    empty = imread(picture)
    lines = [json.dumps({"step": s, "batch_loss": 1 / (1 + s)}) for s in range(0, 500, 50)]
    log.write_text("\n".join([*lines, '{"step": 500, "ba']))
    loss_curve(log, picture)
    drawn = imread(picture)
    assert drawn.shape == empty.shape
    half = drawn.shape[1] // 2
    assert (drawn[:, :half] != empty[:, :half]).mean() > 0.003
    assert (drawn[:, half + 60 :] == empty[:, half + 60 :]).all()
