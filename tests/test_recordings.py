"""Videos and photos of every kind become recordings, and bad files sentences."""

import io
import pickle
import sys

import cv2
import numpy as np
import pytest
import video_fixture
from PIL import Image, ImageCms
from video_fixture import ffmpeg, number_of, ramp, write_frames

from gphm_jax.capture.names import safe_name, unique_names
from gphm_jax.capture.options import ReadOptions, spread
from gphm_jax.capture.photos import open_photos
from gphm_jax.capture.pictures import read_picture
from gphm_jax.capture.recording import Picture, Unreadable
from gphm_jax.capture.sources import open_recordings, recording_paths
from gphm_jax.capture.video import open_video
from gphm_jax.errors import InputError


def pictures(recording):
    """What a recording gives, which must be every frame of its one view in order."""
    items = list(recording.read())
    assert [item.frame for item in items] == list(recording.frames)
    assert {item.view for item in items} == {"0"} == set(recording.views)
    return items


def numbers(recording):
    return [number_of(item.image) for item in pictures(recording) if isinstance(item, Picture)]


# Videos


def test_a_video_gives_its_pictures_each_time_it_is_read(tmp_path):
    written = ramp(12)
    recording = open_video(write_frames(tmp_path / "my clip.mp4", written, 25))
    assert recording.name == "my_clip" and recording.moving
    assert recording.frames[:2] == ("0000", "0001") and len(recording.frames) == 12
    for _ in range(2):
        for item, expected in zip(pictures(recording), written, strict=True):
            np.testing.assert_array_equal(item.image, expected)
            assert item.mask is None and item.calibration is None


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12")),
        ("a.mov", ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:crf=12")),
        ("a.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-crf", "12", "-cpu-used", "8")),
        ("a.mkv", ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-bf", "2")),
        ("a.avi", ("-c:v", "mpeg4", "-q:v", "2", "-bf", "2")),
        ("a.ts", ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12")),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec):
    written = ramp(10)
    recording = open_video(write_frames(tmp_path / name, written, 25, *codec))
    read = pictures(recording)
    assert numbers(recording) == list(range(10))
    error = np.abs(np.stack([item.image for item in read]).astype(int) - np.stack(written))
    assert error.mean() < 1.5


@pytest.mark.parametrize(
    ("flags", "upright"),
    [
        (("-display_rotation", "90"), lambda picture: np.rot90(picture, 1)),
        (("-display_rotation", "-90"), lambda picture: np.rot90(picture, -1)),
        (("-display_rotation", "180"), lambda picture: np.rot90(picture, 2)),
        (("-display_rotation", "0", "-display_hflip"), lambda picture: picture[:, ::-1]),
    ],
)
def test_a_phone_s_video_is_turned_upright(tmp_path, flags, upright):
    written = ramp(3)
    plain = write_frames(tmp_path / "plain.mp4", written, 25)
    ffmpeg(*flags, "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    for item, expected in zip(pictures(open_video(tmp_path / "turned.mp4")), written, strict=True):
        np.testing.assert_array_equal(item.image, upright(expected))


def test_variable_frame_rate_becomes_even_steps(tmp_path):
    # Ten frames 1/30 s apart, then ten 1/10 s apart.
    times = [n / 30 for n in range(10)] + [1 / 3 + n / 10 for n in range(10)]
    path = tmp_path / "vfr.mp4"
    timing = "setpts='if(lt(N,10),N,10+(N-10)*3)/30/TB'"
    write_frames(path, ramp(20), 30, "-vf", timing, "-fps_mode", "vfr", *video_fixture.LOSSLESS)
    for fps, expected in ((10.0, 10.0), (60.0, 30.0)):
        kept = numbers(open_video(path, ReadOptions(fps=fps)))
        assert len(kept) == round(times[-1] * expected) + 1
        assert kept[0] == 0 and kept[-1] == 19 and sorted(kept) == kept
        for step, shown in enumerate(kept):
            # The latest picture by then, give or take a step.
            latest = max(number for number in range(20) if times[number] < (step + 0.5) / expected)
            assert abs(times[shown] - times[latest]) < 1.0 / expected


def test_a_pause_repeats_the_picture_before_it(tmp_path):
    timing = "setpts='if(lt(N,5),N,N+10)/30/TB'"
    path = tmp_path / "pause.mkv"  # which rounds times to milliseconds
    write_frames(path, ramp(10), 30, "-vf", timing, "-fps_mode", "vfr", *video_fixture.LOSSLESS)
    assert numbers(open_video(path)) == [0, 1, 2, 3, *[4] * 11, 5, 6, 7, 8, 9]


def test_damaged_time_stamps_do_not_repeat_a_picture_for_hours(tmp_path):
    path = tmp_path / "a.mkv"
    timing = "setpts='if(lt(N,5),N,N+100000)/30/TB'"
    write_frames(path, ramp(10), 30, "-vf", timing, "-fps_mode", "vfr", *video_fixture.LOSSLESS)
    with pytest.raises(InputError, match=r"a.mkv lasts 3334 s by its time stamps but has 10 frames"):
        open_video(path)
    assert len(open_video(path, ReadOptions(max_frames=3)).frames) == 3


@pytest.mark.parametrize(
    ("rate", "fps", "kept"), [(60, 30, 2), (24, 30, 1), (29.97, 30, 1), (30, 30, 1), (30, 10, 3)]
)
def test_frames_a_second_are_limited(tmp_path, rate, fps, kept):
    path = write_frames(tmp_path / "a.mkv", ramp(24), rate)
    assert numbers(open_video(path, ReadOptions(fps=fps))) == list(range(0, 24, kept))


def test_at_most_so_many_frames_evenly(tmp_path):
    path = write_frames(tmp_path / "a.mp4", ramp(31), 30)
    recording = open_video(path, ReadOptions(max_frames=4))
    assert recording.frames == ("0000", "0001", "0002", "0003")
    assert np.abs(np.array(numbers(recording)) - [0, 10, 20, 30]).max() <= 3
    assert numbers(open_video(path, ReadOptions(max_frames=1))) == [0]
    assert len(open_video(path, ReadOptions(max_frames=99)).frames) == 31


def test_an_edit_list_cuts(tmp_path):
    whole = write_frames(
        tmp_path / "whole.mp4", ramp(24), 24, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "24"
    )
    ffmpeg("-ss", "0.5", "-i", whole, "-c", "copy", tmp_path / "cut.mp4")
    assert numbers(open_video(tmp_path / "cut.mp4")) == list(range(12, 24))


@pytest.mark.parametrize("size", [(90, 90), (2, 2), (45, 91)])
def test_small_and_odd_sizes(tmp_path, size):
    written = ramp(2, size)
    read = pictures(open_video(write_frames(tmp_path / "a.mkv", written, 25, "-c:v", "ffv1")))
    np.testing.assert_array_equal(read[1].image, written[1])


def test_one_frame(tmp_path):
    recording = open_video(write_frames(tmp_path / "one.mp4", ramp(1), 25))
    assert recording.frames == ("0000",) and numbers(recording) == [0]


def test_4k_is_read_scaled(tmp_path):
    written = ramp(2, (2160, 3840))
    path = write_frames(
        tmp_path / "big.mp4", written, 25, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"
    )
    read = pictures(open_video(path))
    assert [item.image.shape for item in read] == [(1440, 2560, 3)] * 2
    expected = cv2.resize(written[1], (2560, 1440), interpolation=cv2.INTER_AREA)
    assert np.abs(read[1].image.astype(int) - expected).mean() < 1.0
    assert pictures(open_video(path, ReadOptions(max_side=108)))[0].image.shape == (108, 192, 3)


def test_wide_pixels_become_square(tmp_path):
    plain = write_frames(tmp_path / "plain.mp4", ramp(1), 25)
    ffmpeg(
        "-i", plain, "-c", "copy", "-aspect", "8:3", tmp_path / "wide.mp4"
    )  # 64x48 pixels twice as wide as high
    assert pictures(open_video(tmp_path / "wide.mp4"))[0].image.shape == (48, 128, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cut_off_video_gives_what_there_is_and_reports_the_rest(tmp_path, name):
    path = write_frames(
        tmp_path / name,
        ramp(30),
        30,
        "-c:v",
        "png",
        *(("-movflags", "+faststart") if name == "a.mp4" else ()),
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    read = pictures(open_video(path))
    good = [item for item in read if isinstance(item, Picture)]
    assert len(read) == 30 and 8 < len(good) < 22
    assert [number_of(item.image) for item in good] == list(range(len(good)))
    for item in read[len(good) :]:
        assert isinstance(item, Unreadable) and str(path) in item.reason and "\n" not in item.reason


def test_damage_in_the_middle_leaves_the_other_frames_in_their_places(tmp_path):
    path = write_frames(tmp_path / "a.mkv", ramp(10), 25, "-c:v", "png")
    content = bytearray(path.read_bytes())
    place = [index for index in range(len(content)) if content[index : index + 4] == b"\x89PNG"][4]
    content[place + 16 : place + 24] = bytes(8)  # a picture of no size
    path.write_bytes(content)
    read = pictures(open_video(path))
    assert [item.frame for item in read if isinstance(item, Unreadable)] == ["0004"]
    good = [item for item in read if isinstance(item, Picture)]
    assert [number_of(item.image) for item in good] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def bad_video(folder, kind):
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("not a video\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "sound":
        ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", path)
    elif kind in ("codec", "header"):
        write_frames(path, ramp(5), 25)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"avc1", b"zzzz") if kind == "codec" else content[:400])
    elif kind == "undecodable":
        write_frames(path.with_suffix(".mkv"), ramp(5), 25, "-c:v", "png")
        content = path.with_suffix(".mkv").read_bytes()
        path.write_bytes(content.replace(b"IHDR\0\0\0\x40\0\0\0\x30", b"IHDR" + bytes(8)))  # no size
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "no video"),
        ("empty", "is empty"),
        ("sound", "no video stream"),
        ("codec", "coded in 'zzzz'.*H.264"),
        ("header", "no video"),
        ("undecodable", "no frame of .* can be decoded"),
        ("missing", "nothing at"),
    ],
)
def test_a_bad_video_is_a_sentence(tmp_path, kind, words):
    path = bad_video(tmp_path, kind)
    with pytest.raises(InputError, match=words) as caught:
        open_recordings(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_program(tmp_path, monkeypatch):
    path = write_frames(tmp_path / "a.mp4", ramp(1), 25)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r"pip install 'gphm_jax\[video\]'"):
        open_video(path)


@pytest.mark.parametrize("name", ["-f.mp4", "a:b.mp4", "50%d.mp4", "ü [1].mp4"])
def test_odd_file_names(tmp_path, name, monkeypatch):
    write_frames(tmp_path / "plain.mp4", ramp(2), 25).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert numbers(open_video(name)) == [0, 1]


def test_a_reader_may_stop_early(tmp_path):
    recording = open_video(write_frames(tmp_path / "a.mp4", ramp(30, (480, 640)), 25))
    reader = recording.read()
    assert number_of(next(reader).image) == 0
    reader.close()
    assert number_of(next(recording.read()).image) == 0


# Photos


def photo():
    """A picture with different corners, smooth enough for JPEG."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * x, 6 * y, 255 - 2 * (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95, **options)
    return buffer.getvalue()


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to stand upright
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.fromarray(photo()), exif=exif))
    (item,) = pictures(open_photos(tmp_path / "a.jpg"))
    assert item.image.shape == (60, 40, 3)
    assert np.abs(item.image.astype(int) - np.rot90(photo(), -1)).mean() < 3.0
    assert read_picture(tmp_path / "a.jpg", max_side=20)[0].shape == (30, 20, 3)


def test_alpha_is_the_mask(tmp_path):
    alpha = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint8)
    Image.fromarray(np.dstack([photo(), alpha])).save(tmp_path / "cut.png")
    Image.fromarray(np.dstack([photo(), np.full_like(alpha, 255)])).save(tmp_path / "whole.png")
    cut, whole = pictures(open_photos(tmp_path))
    np.testing.assert_array_equal(cut.image, photo())
    np.testing.assert_array_equal(cut.mask, alpha)
    np.testing.assert_array_equal(whole.image, photo())
    assert whole.mask is None  # opaque everywhere: nobody cut anything out


def test_palettes_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    read, mask = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read[0, 1], [0, 0, 255])
    np.testing.assert_array_equal(mask, [[0, 255]])


def test_grey_cmyk_and_deep_pictures_become_rgb(tmp_path):
    gray = photo()[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    (tmp_path / "cmyk.jpg").write_bytes(jpeg(Image.fromarray(photo()).convert("CMYK")))
    cv2.imwrite(str(tmp_path / "deep.png"), photo()[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deepgray.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deepgray.tif"), gray.astype(np.uint16) * 257)
    read = {item.frame: item.image for item in pictures(open_photos(tmp_path))}
    for name in ("gray", "deepgray", "deepgray_2"):
        np.testing.assert_array_equal(read[name], np.repeat(gray[..., None], 3, axis=-1))
    np.testing.assert_array_equal(read["deep"], photo())
    assert np.abs(read["cmyk"].astype(int) - photo()).mean() < 3.0


def test_an_embedded_profile_is_converted(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo()).save(tmp_path / "same.png", icc_profile=profile)
    assert np.abs(read_picture(tmp_path / "same.png")[0].astype(int) - photo()).max() <= 1
    # A space whose red and green are exchanged.
    swapped = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    Image.fromarray(photo()[..., [1, 0, 2]]).save(tmp_path / "swapped.png", icc_profile=swapped)
    assert np.abs(read_picture(tmp_path / "swapped.png")[0].astype(int) - photo()).max() <= 2
    Image.fromarray(photo()).save(tmp_path / "broken.png", icc_profile=b"nothing")
    np.testing.assert_array_equal(read_picture(tmp_path / "broken.png")[0], photo())


def test_big_photos_are_read_scaled(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.fromarray(photo()).resize((1200, 800))))
    (item,) = pictures(open_photos(tmp_path, ReadOptions(max_side=200)))
    assert item.image.shape == (200, 300, 3)
    expected = cv2.resize(photo(), (300, 200), interpolation=cv2.INTER_LINEAR)
    assert np.abs(item.image.astype(int) - expected).mean() < 3.0


def test_frames_have_the_files_names(tmp_path):
    for name in ("b 2.png", "b 10.png", "b_10.png", "é.png", ".hidden.png"):
        Image.fromarray(photo()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    recording = open_photos(tmp_path)
    assert recording.frames == ("b_2", "b_10", "b_10_2", "é") and not recording.moving
    assert len(pictures(recording)) == 4
    assert open_photos(tmp_path, ReadOptions(max_frames=2)).frames == ("b_2", "é")


BAD_PHOTOS = {
    "cut.jpg": (jpeg(Image.fromarray(photo()).resize((600, 400)))[:3000], "truncated"),
    "text.jpg": (b"hello", "no picture"),
    "empty.png": (b"", "empty"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC.*JPEG"),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_a_bad_photo_is_a_sentence_alone_and_dropped_among_others(tmp_path, name):
    content, words = BAD_PHOTOS[name]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=words) as caught:
            open_recordings(path)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    Image.fromarray(photo()).save(tmp_path / "good.png")
    items = {item.frame: item for item in pictures(open_photos(tmp_path))}
    assert isinstance(items["good"], Picture)
    bad = items[name.split(".")[0]]
    assert isinstance(bad, Unreadable) and str(tmp_path / name) in bad.reason


def test_folders_without_one_person_s_photos(tmp_path):
    with pytest.raises(InputError, match="nothing to read in .*transforms.json"):
        open_recordings(tmp_path)
    with pytest.raises(InputError, match="no pictures in .*put JPEG"):
        open_photos(tmp_path)
    (tmp_path / "people" / "anna").mkdir(parents=True)
    Image.fromarray(photo()).save(tmp_path / "people" / "anna" / "a.png")
    with pytest.raises(InputError, match="give a folder inside it, such as .*anna"):
        open_photos(tmp_path / "people")
    both = tmp_path / "both"
    both.mkdir()
    for number in range(10):
        for video in ("left", "right"):
            Image.fromarray(photo()).save(both / f"{video}_{number:03d}.png")
    with pytest.raises(InputError, match="several videos"):
        open_recordings(both)
    with pytest.raises(InputError, match="check the path"):
        open_photos(tmp_path / "gone")


# What lies at a path


def test_a_folder_of_videos_and_one_of_photos_and_videos(tmp_path):
    write_frames(tmp_path / "a.mp4", ramp(2), 25)
    write_frames(tmp_path / "a.mkv", ramp(3), 25)
    first, second = open_recordings(tmp_path)
    assert {first.name, second.name} == {"a", "a_2"}
    assert sorted((len(first.frames), len(second.frames))) == [2, 3]
    Image.fromarray(photo()).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="photos .* and videos"):
        open_recordings(tmp_path)


def test_paths_of_clips_are_listed_without_opening_them(tmp_path):
    (tmp_path / "a.mp4").write_text("broken")
    write_frames(tmp_path / "b.mp4", ramp(2), 25)
    assert recording_paths(tmp_path) == (tmp_path / "a.mp4", tmp_path / "b.mp4")
    with pytest.raises(InputError, match="a.mp4"):
        open_recordings(tmp_path)
    assert [item.name for item in open_recordings(tmp_path / "b.mp4")] == ["b"]
    assert recording_paths(tmp_path / "b.mp4") == (tmp_path / "b.mp4",)


def test_recordings_go_to_other_processes(tmp_path):
    write_frames(tmp_path / "a.mp4", ramp(2), 25)
    Image.fromarray(photo()).save(tmp_path / "b.png")
    for path in (tmp_path / "a.mp4", tmp_path / "b.png"):
        (recording,) = pickle.loads(pickle.dumps(open_recordings(path)))
        assert all(isinstance(item, Picture) for item in pictures(recording))


@pytest.mark.parametrize("option", [{"fps": 0.0}, {"max_frames": 0}, {"max_side": -1}])
def test_options_are_checked(tmp_path, option):
    with pytest.raises(InputError, match="positive"):
        open_recordings(tmp_path, **option)


def test_names_are_safe_and_unique():
    assert safe_name("../a b/ü+-_1.x") == "a_b_ü+-_1.x" and safe_name("...") == "unnamed"
    assert unique_names(["a", "A", "a_2", "b"]) == ["a", "A_2", "a_2_2", "b"]


def test_spread_keeps_the_ends():
    assert spread(5, None) == spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(5, 3) == [0, 2, 4] and spread(5, 1) == [0]
