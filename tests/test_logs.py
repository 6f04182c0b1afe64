import json

import jax
import numpy as np
import pytest
from PIL import Image

from gphm_jax.logs import RunLog, image_grid, read_metrics


def picture(level: float) -> np.ndarray:
    return np.full((1, 8, 8, 3), level, np.float32)


def train(workdir, stage, *, start, steps, total, value):
    """A stage that logs every second step and draws every fourth."""
    with RunLog(workdir) as log, log.progress(stage, start=start, total=total) as bar:
        for step in range(start + 1, steps + 1):
            if step % 2 == 0:
                log.scalars(stage, step, {"loss": value, "psnr": 20.0})
                bar.update(step, {"loss": value})
            if step % 4 == 0:
                log.images(stage, step, {"truth": picture(value)})


def test_a_resumed_run_replaces_what_it_does_again(tmp_path):
    train(tmp_path, "stage1", start=0, steps=4, total=4, value=0.1)
    train(tmp_path, "stage2", start=0, steps=8, total=8, value=0.2)
    train(tmp_path, "stage2", start=5, steps=6, total=8, value=0.3)  # a checkpoint at 5, cut off again at 6
    rows = read_metrics(tmp_path)
    expected = [
        ("stage1", 2, 0.1),
        ("stage1", 4, 0.1),
        ("stage2", 2, 0.2),
        ("stage2", 4, 0.2),
        ("stage2", 6, 0.3),
    ]
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == expected
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["stage1_0000004.png", "stage2_0000004.png"]  # that of step 8 belongs to the lost run
    assert all(list((tmp_path / "tensorboard" / stage).glob("events*")) for stage in ("stage1", "stage2"))


def test_a_stage_done_again_drops_the_stages_after_it(tmp_path):
    train(tmp_path, "stage1", start=0, steps=4, total=4, value=0.1)
    train(tmp_path, "stage2", start=0, steps=4, total=4, value=0.2)
    train(tmp_path, "stage1", start=2, steps=4, total=4, value=0.3)
    assert [(row["stage"], row["loss"]) for row in read_metrics(tmp_path)] == [
        ("stage1", 0.1),
        ("stage1", 0.3),
    ]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    train(tmp_path, "stage1", start=0, steps=4, total=8, value=0.1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stage1", "st')
    train(tmp_path, "stage1", start=4, steps=6, total=8, value=0.2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_a_scalar_that_is_not_finite_stays_valid_json(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars("stage1", 1, {"loss": float("nan")})
    assert read_metrics(tmp_path) == [{"stage": "stage1", "step": 1, "loss": None}]


def test_the_bar_tells_rate_time_left_and_loss(tmp_path, capsys):
    train(tmp_path, "stage1", start=2, steps=6, total=6, value=0.125)
    shown = capsys.readouterr().err
    assert "stage1" in shown and "6/6" in shown and "step/s" in shown and "loss=0.125" in shown
    assert "2/6" in shown  # a resumed run starts where it was


def test_of_several_processes_the_first_alone_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    train(tmp_path / "run", "stage1", start=0, steps=4, total=4, value=0.1)
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_a_grid_shows_every_tile_in_its_place():
    rng = np.random.default_rng(0)
    truth, alpha = rng.uniform(size=(2, 40, 40, 3)), rng.uniform(size=(2, 40, 40))
    sheet = image_grid({"truth": truth, "alpha": alpha})
    side, gap = 160, 6
    top = sheet.shape[0] - 2 * (side + gap) - gap // 2  # below the heading
    for row in range(2):
        for column, tile in enumerate((truth[row], np.repeat(alpha[row][..., None], 3, axis=-1))):
            y, x = top + row * (side + gap), gap + column * (side + gap)
            expected = (
                np.round(255.0 * tile).repeat(4, axis=0).repeat(4, axis=1)
            )  # whole pixels, enlarged 4 times
            np.testing.assert_array_equal(sheet[y : y + side, x : x + side], expected)
    assert sheet[: top - 1].min() < 128  # the labels


def test_long_labels_do_not_run_into_their_neighbours():
    blank = np.ones((1, 160, 160, 3))
    sheet = image_grid({"a": blank, "browInnerUp=1,browOuterUp=1": blank, "b": blank})
    heading = sheet[:20] < 200
    columns = np.flatnonzero(heading.any(axis=(0, 2)))
    middle = columns[(columns > 120) & (columns < 380)]
    assert middle.min() >= 172 and middle.max() <= 332 and len(middle) > 60


def test_a_grid_of_many_large_columns_is_reduced():
    column = np.full((1, 300, 300, 3), 0.25, np.float32)
    sheet = image_grid({f"c{i}": column for i in range(9)})
    assert 1500 < sheet.shape[1] <= 1600
    assert (sheet == 64).mean() > 0.7


def test_uneven_columns_are_refused():
    with pytest.raises(ValueError, match="truth 2, fine 1"):
        image_grid({"truth": np.zeros((2, 4, 4, 3)), "fine": np.zeros((1, 4, 4, 3))})


def test_the_grid_on_disk_is_the_sheet(tmp_path):
    with RunLog(tmp_path) as log:
        path = log.images("stage1", 20, {"truth": picture(0.5)})
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(opened), image_grid({"truth": picture(0.5)}))
