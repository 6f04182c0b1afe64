"""One visitor's page: the picture behind, the controls beside it."""

from __future__ import annotations

import contextlib
import html
import pathlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import viser
from jaxtyping import UInt8

from gphm_jax.errors import InputError
from gphm_jax.viewer import saving
from gphm_jax.viewer.dial import Code, Dial
from gphm_jax.viewer.drawing import Drawing
from gphm_jax.viewer.exhibit import Exhibit, People
from gphm_jax.viewer.frames import View
from gphm_jax.viewer.painter import MODES
from gphm_jax.viewer.playback import Playback
from gphm_jax.viewer.repainter import Repainter

_MODES = {mode.capitalize(): mode for mode in MODES}
_ENCODER, _SCORES = "Encoder", "Scores"  # what reads a face's expression
_NOBODY = "–"  # in the place of a name
_NEAREST, _FARTHEST = 0.8, 20.0  # head lengths from the middle of the orbit
_LEAST_CANVAS = 16  # pixels: on less, as in a window that is folded up, there is nothing to be seen


# viser has no camera control; a frame of the page's own origin may use the camera and hand pictures to the page.
_CAMERA = (
    '<iframe allow="camera" style="border: 0; width: calc(100% - 20px); margin: 0 10px; height: 3em" srcdoc="'
    + html.escape((pathlib.Path(__file__).parent / "camera.html").read_text(encoding="utf-8"))
    + '"></iframe>'
)


class Page:
    """What a browser shows of a session."""

    def __init__(self, client: viser.ClientHandle, exhibit: Exhibit) -> None:
        self._client, self._exhibit, self._session = client, exhibit, exhibit.session()
        self._stop_clip: Callable[[], None] = lambda: None
        self._follow_clip: Callable[[], None] = lambda: None
        self._drawing = Drawing(self._session, exhibit.head, self._show)
        self._repainter = Repainter(self._drawing.draw)
        client.camera.min_orbit_distance, client.camera.max_orbit_distance = _NEAREST, _FARTHEST
        self._add_view()
        if exhibit.people is not None and self._session.person is not None:
            self._add_people(exhibit.people, self._session.person)
        self._show_expression = self._add_expression()
        self._add_faces()
        if self._session.playback is not None:
            self._add_clip(self._session.playback)
        self._add_saving()
        client.camera.on_update(lambda camera: self._look(camera))
        self._look(client.camera)
        self._repainter.start()  # last: where a page cannot be made, nothing is left of it

    def close(self) -> None:
        """The visitor has left."""
        self._repainter.close()

    def _show(self, picture: UInt8[np.ndarray, "h w 3"], best: bool) -> None:
        self._client.scene.set_background_image(picture, format="jpeg", jpeg_quality=95 if best else 80)
        self._follow_clip()
        self._client.flush()

    def _look(self, camera: viser.CameraHandle) -> None:
        if min(camera.image_height, camera.image_width) < _LEAST_CANVAS:
            return
        self._session.view = View(
            position=camera.position,
            camera_to_world=viser.transforms.SO3(camera.wxyz).as_matrix(),
            fov=camera.fov,
            canvas=(camera.image_height, camera.image_width),
        )
        self._repainter.touch()

    def _add_view(self) -> None:
        gui = self._client.gui
        with gui.add_folder("View"):
            mode = gui.add_dropdown("Show", [*_MODES])
            front = gui.add_button("From the front")

        @mode.on_update
        def _(_: object) -> None:
            self._session.mode = _MODES[mode.value]
            self._repainter.touch()

        @front.on_click
        def _(_: object) -> None:
            self._client.camera.position = self._exhibit.start.position
            self._client.camera.look_at = self._exhibit.start.target

    def _add_people(self, people: People, dial: Dial) -> None:
        gui = self._client.gui
        with gui.add_folder("Person"):
            names = gui.add_dropdown("Name", (*people.names, _NOBODY))
            other = gui.add_button("Somebody new", icon=viser.Icon.DICE)
            show = self._add_sliders(dial)

        def meet(code: Code) -> None:
            dial.take(code)
            show({})
            self._repainter.touch()

        @names.on_update
        def _(_: object) -> None:
            if names.value in people.names:
                meet(people.codes[people.names.index(names.value)])

        @other.on_click
        def _(_: object) -> None:
            _set(names, _NOBODY)  # so that each name can be chosen next
            meet(people.sample(secrets.randbits(32)))

    def _add_faces(self) -> None:
        """Expressions from pictures: chosen, or taken by the camera, which hands its own to the same button."""
        gui = self._client.gui
        with gui.add_folder("Expression of a picture", expand_by_default=False):
            upload = gui.add_upload_button("Choose a picture", icon=viser.Icon.UPLOAD, mime_type="image/*")
            gui.add_html(_CAMERA)
            reader = gui.add_dropdown("Read by", (_ENCODER, _SCORES), visible=self._exhibit.scored)
            seen = gui.add_image(np.full((1, 1, 3), 255, np.uint8), label="Seen", visible=False)

        @upload.on_upload
        def _(_: object) -> None:
            with self._telling("This picture does not help"):
                head, _ = self._drawing.head()
                face = self._exhibit.faces.read(upload.value.content, upload.value.name, head.spec.face_size)
                if reader.value == _SCORES:
                    self._session.expression.set_all(face.scores)
                    self._show_expression(face.scores)
                else:
                    self._session.expression.take(head.encode(face.image))
                    self._show_expression({})
                self._stop_clip()  # which would hide it
                self._repainter.touch()
                seen.image, seen.visible = face.image, True

    def _add_clip(self, playback: Playback) -> None:
        gui, last = self._client.gui, len(playback.clip) - 1
        with gui.add_folder("Clip"):
            play = gui.add_button("Play", icon=viser.Icon.PLAYER_PLAY)
            frame = gui.add_slider("Frame", 0, max(1, last), 1, 0)
            speed = gui.add_slider("Speed", 0.1, 2.0, 0.05, 1.0)
            stop = gui.add_button("Back to the sliders", visible=False)

        def show() -> None:
            play.label = "Pause" if playback.playing else "Play"
            play.icon = viser.Icon.PLAYER_PAUSE if playback.playing else viser.Icon.PLAYER_PLAY
            stop.visible = playback.frame() is not None
            self._repainter.touch()

        @play.on_click
        def _(_: object) -> None:
            if playback.playing:
                follow()
                playback.pause()
            else:
                playback.play()
            show()

        # In viser's own loop: behind other callbacks, `follow` would have taken the visitor's frame back.
        @frame.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client is not None:  # the visitor's doing, not `follow`'s
                playback.seek(min(frame.value, last))
                show()

        @speed.on_update
        def _(_: object) -> None:
            playback.set_speed(speed.value)

        def end() -> None:
            playback.stop()
            show()

        def follow() -> None:
            shown = playback.frame()
            if playback.playing and shown is not None:
                _set(frame, shown)

        stop.on_click(lambda _: end())
        self._stop_clip, self._follow_clip = end, follow

    def _add_saving(self) -> None:
        gui = self._client.gui
        with gui.add_folder("Save", expand_by_default=False):
            picture = gui.add_button("The picture", icon=viser.Icon.CAMERA)
            kind = gui.add_dropdown("Format", saving.HEADS)
            head = gui.add_button("The head", icon=viser.Icon.DOWNLOAD)

        @picture.on_click
        def _(_: object) -> None:
            self._download("head.png", saving.picture(self._drawing.best()))

        @head.on_click
        def _(_: object) -> None:
            avatar, moment = self._drawing.head()
            saved = saving.head(kind.value, avatar, moment, self._exhibit.statement(avatar))
            for suffix, content in saved.items():
                self._download(f"head{suffix}", content)

    def _download(self, name: str, content: bytes) -> None:
        self._client.send_file_download(name, content, save_immediately=True)

    @contextlib.contextmanager
    def _telling(self, title: str) -> Iterator[None]:
        """Tells the visitor what is wrong with what was given."""
        try:
            yield
        except InputError as error:
            self._client.add_notification(title, str(error), color="red", auto_close_seconds=10.0)

    def _add_expression(self) -> Callable[[Mapping[str, float]], None]:
        """The sliders, and a button that takes all of it back; what moves the sliders."""
        gui, dial = self._client.gui, self._session.expression
        with gui.add_folder("Expression"):
            relax = gui.add_button("Relax")
            show = self._add_sliders(dial)

        @relax.on_click
        def _(_: object) -> None:
            dial.relax()
            show({})
            self._repainter.touch()

        return show

    def _add_sliders(self, dial: Dial) -> Callable[[Mapping[str, float]], None]:
        """A dial's sliders, in a folder for each group where there are several; what moves them, the rest to zero."""
        gui, groups = self._client.gui, dial.sliders.groups
        handles: dict[str, viser.GuiSliderHandle[float]] = {}
        for group, sliders in groups.items():
            with (
                gui.add_folder(group, expand_by_default=False)
                if len(groups) > 1
                else contextlib.nullcontext()
            ):
                for slider in sliders:
                    handle = gui.add_slider(slider.label, slider.low, slider.high, 0.01, 0.0)
                    handles[slider.name] = handle
                    self._connect(handle, dial, slider.name)

        def show(values: Mapping[str, float]) -> None:
            for name, handle in handles.items():
                _set(handle, round(values.get(name, 0.0), 2))

        return show

    def _connect(self, handle: viser.GuiSliderHandle[float], dial: Dial, slider: str) -> None:
        @handle.on_update
        def _(_: object) -> None:
            dial.set(slider, handle.value)  # the latest: callbacks may overtake each other
            self._repainter.touch()


def _set(handle: Any, value: float | str) -> None:
    """Sets a control. mypy does not see viser's setters."""
    handle.value = value
