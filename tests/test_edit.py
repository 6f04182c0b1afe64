"""The program that draws heads with other expressions and other people: its pictures, films and refusals."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from absl import flags, logging
from PIL import Image
from test_heads import heads, workdir  # noqa: F401  # fixtures

from gphm_jax.capture.face_photo import Face, FaceReader
from gphm_jax.errors import InputError
from gphm_jax.files import write_image
from gphm_jax.provenance import COMPOSITE, RENDERED, read_marks
from gphm_jax.scores import NAMES, read_scores, score_vector
from gphm_jax.tools import edit as tool


@pytest.fixture(scope="module")
def avatar_dir(heads, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("fit") / "ann"
    heads.avatar(heads.codes[0]).save(path / "avatar")
    return path


@pytest.fixture
def run():
    """Runs the tool with some flags, as the command line gives them; takes the flags back afterwards."""
    known, verbosity = set(flags.FLAGS), logging.get_verbosity()
    tool.define_flags()

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["edit", *map(str, arguments)])
        tool.edit(tool.make_request())

    yield run
    logging.set_verbosity(verbosity)  # parsing flags has set it
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_scores_move_an_avatar(run, avatar_dir, heads, tmp_path):  # noqa: F811
    out, other = tmp_path / "one.png", tmp_path / "other.png"
    score = "--scores=browDownRight=1"  # the fixture's frames have it
    run(f"--avatar={avatar_dir}", score, f"--out={out}")
    avatar = heads.avatar(heads.codes[0])
    wanted = avatar.render(heads.scores.code(score_vector({"browDownRight": 1.0})))[0]
    np.testing.assert_allclose(pixels(out), 255 * np.asarray(wanted), atol=0.51)
    assert read_marks(out).source == RENDERED
    (tmp_path / "scores.json").write_text(json.dumps({"browDownRight": 0.0}))
    run(f"--avatar={avatar_dir}", f"--scores={tmp_path / 'scores.json'}", f"--out={other}")
    assert np.abs(pixels(out).astype(int) - pixels(other)).max() > 0


def test_faces_and_other_avatars_lend_their_expressions(run, avatar_dir, heads, tmp_path):  # noqa: F811
    face = (np.random.default_rng(0).random((40, 40, 3)) * 255).astype(np.uint8)
    write_image(tmp_path / "grin.png", face)
    run(
        f"--avatar={avatar_dir}",
        f"--face={tmp_path / 'grin.png'}",
        f"--from_avatar={avatar_dir}",
        f"--out={tmp_path / 'sheet.png'}",
    )
    sheet = pixels(tmp_path / "sheet.png")
    avatar = heads.avatar(heads.codes[0])
    tile = 160  # toy pictures are enlarged to it by whole numbers
    rest = np.asarray(avatar.render(avatar.habits.expression)[0]).repeat(5, axis=0).repeat(5, axis=1)
    np.testing.assert_allclose(sheet[-tile - 9 : -9, -tile - 6 : -6], 255 * rest, atol=0.51)
    assert read_marks(tmp_path / "sheet.png").source == COMPOSITE  # the face is in the corner
    run(f"--avatar={avatar_dir}", f"--face={tmp_path / 'grin.png'}", f"--out={tmp_path / 'alone.png'}")
    wanted = avatar.render(avatar.encode(face))[0]
    np.testing.assert_allclose(pixels(tmp_path / "alone.png"), 255 * np.asarray(wanted), atol=0.51)
    assert read_marks(tmp_path / "alone.png").source == RENDERED


def test_a_photo_goes_through_face_detection(run, avatar_dir, heads, tmp_path, monkeypatch):  # noqa: F811
    face = np.full((32, 32, 3), 90, np.uint8)
    seen = []

    def read_file(self, path, size):
        seen.append((path, size))
        return Face(image=face, scores={})

    monkeypatch.setattr(FaceReader, "read_file", read_file)
    write_image(tmp_path / "photo.jpg", np.zeros((64, 64, 3), np.uint8))
    run(f"--avatar={avatar_dir}", f"--image={tmp_path / 'photo.jpg'}", f"--out={tmp_path / 'one.png'}")
    avatar = heads.avatar(heads.codes[0])
    assert seen == [(tmp_path / "photo.jpg", avatar.spec.face_size)]
    np.testing.assert_allclose(
        pixels(tmp_path / "one.png"), 255 * np.asarray(avatar.render(avatar.encode(face))[0]), atol=0.51
    )


def test_a_head_model_draws_people_and_the_papers_grid(run, workdir, tmp_path):  # noqa: F811
    run(f"--prior={workdir}", "--sample=8", f"--out={tmp_path / 'people.jpg'}")
    assert pixels(tmp_path / "people.jpg").shape[0] > 2 * 160  # six beside one another
    run(f"--prior={workdir}", "--grid", f"--out={tmp_path / 'grid.png'}")
    height, width = pixels(tmp_path / "grid.png").shape[:2]
    assert 2 * 160 < height < 3 * 160 and 5 * 160 < width < 6 * 160
    run(f"--prior={workdir}", "--grid", "--identity=b", "--identity=c", f"--out={tmp_path / 'known.png'}")
    assert (pixels(tmp_path / "known.png") != pixels(tmp_path / "grid.png")).any()


def test_transitions_are_strips_and_films(run, workdir, avatar_dir, heads, tmp_path):  # noqa: F811
    score = "--scores=browDownRight=1"
    run(f"--avatar={avatar_dir}", score, "--interpolate", "--frames=3", f"--out={tmp_path / 's.png'}")
    strip = pixels(tmp_path / "s.png")
    avatar = heads.avatar(heads.codes[0])
    rest = np.asarray(avatar.render(avatar.habits.expression)[0]).repeat(5, axis=0).repeat(5, axis=1)
    np.testing.assert_allclose(strip[-169:-9, 6:166], 255 * rest, atol=0.51)
    film = tmp_path / "f.mp4"
    run(f"--prior={workdir}", "--identity=a", "--sample=1", "--interpolate", "--frames=8", f"--out={film}")
    video = cv2.VideoCapture(str(film))
    frames = [video.read()[1] for _ in range(8)]
    assert not video.read()[0] and read_marks(film).source == RENDERED
    apart = [np.abs(frame.astype(int) - frames[0]).mean() for frame in frames]
    assert max(apart) == pytest.approx(apart[4], rel=0.2) and apart[7] < 0.5 * apart[4]  # there and back


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out=x.png"], "either --avatar=DIR"),
        (["--avatar={a}", "--prior={p}", "--out=x.png"], "either --avatar=DIR"),
        (["--avatar={a}", "--scores=jawOpen=1"], "--out is missing"),
        (["--avatar={a}", "--out={t}/x.png"], "nothing to edit"),
        (["--avatar={a}", "--scores=jawOpen=1", "--out={t}/x.mp4"], "needs --interpolate"),
        (["--avatar={a}", "--scores=jawOpne=1", "--out={t}/x.png"], "did you mean jawOpen"),
        (["--avatar={a}", "--scores=jawOpen=wide", "--out={t}/x.png"], "'jawOpen=wide' is no score"),
        (["--avatar={a}", "--scores=jawOpen=70", "--out={t}/x.png"], "between -1 and 2"),
        (["--avatar={a}", "--scores=none.json", "--out={t}/x.png"], "no scores in 'none.json'"),
        (["--avatar={a}", "--image=none.jpg", "--out={t}/x.png"], "no picture at --image=none.jpg"),
        (
            ["--avatar={a}", "--sample=3", "--scores=jawOpen=1", "--out={t}/x.png"],
            "--sample belongs to --prior",
        ),
        (["--prior={p}", "--identity=z", "--out={t}/x.png"], "no identity 'z': the head model knows a, b, c"),
        (
            ["--prior={p}", "--sample=3", "--interpolate", "--out={t}/x.mp4"],
            "here are 3 heads, 0 expressions",
        ),
        (["--prior={t}", "--grid", "--out={t}/x.png"], "no trained prior in"),
        (["--avatar={t}", "--scores=jawOpen=1", "--out={t}/x.png"], "no avatar in"),
    ],
)
def test_what_is_wrong_is_named(run, arguments, words, avatar_dir, workdir, tmp_path):  # noqa: F811
    places = {"a": avatar_dir, "p": workdir, "t": tmp_path}
    with pytest.raises(InputError, match=words):
        run(*(argument.format(**places) for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_scores_as_a_user_writes_them(tmp_path):
    assert read_scores("jawOpen=0.7, mouthSmile=.5,") == {"jawOpen": 0.7, "mouthSmile": 0.5}
    for text, words in (("[1]", "holds no named scores"), ("{", "is not JSON")):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(InputError, match=words):
            read_scores(str(tmp_path / "s.json"))


def test_the_names_are_listed(run, capsys):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["edit", "--scores=list"])
    tool.main([])
    assert tuple(capsys.readouterr().out.split()) == NAMES


def test_a_misspelt_score_is_one_line_and_status_2(avatar_dir, tmp_path):
    command = [sys.executable, "-m", "gphm_jax.tools.edit", f"--avatar={avatar_dir}", "--scores=mouthSmyle=1"]
    done = subprocess.run([*command, f"--out={tmp_path / 'x.png'}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.strip().splitlines() == [
        "error: no expression score 'mouthSmyle': did you mean mouthSmile?"
    ]


def test_asking_for_help_is_no_failure():
    command = [sys.executable, "-m", "gphm_jax.tools.edit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "--from_avatar" in done.stdout
