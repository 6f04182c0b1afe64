"""Reports as one self-contained HTML file: figures, pictures, curves and tables of a run."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gphm_jax import files
from gphm_jax.curves import Chart, chart_svg
from gphm_jax.provenance import Statement, read_marks

_STYLE = pathlib.Path(__file__).with_name("report.css")
_WIDEST = 1600  # pixels of an embedded picture
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """The few numbers that matter most, set large: (value as text, what it is)."""

    items: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; the first column is text, numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Charts:
    """Line charts side by side."""

    charts: Sequence[Chart]
    caption: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture from a file, whose marks it keeps, or an array (floats in [0, 1] or bytes)."""

    image: str | os.PathLike[str] | np.ndarray
    caption: str
    statement: Statement | None = None  # of an array that shows renderings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it; `folded` ones open on a click."""

    heading: str
    items: Sequence[Figures | Table | Charts | Picture | Note]
    folded: bool = False


def write_report(
    path: str | os.PathLike[str], *, title: str, subtitle: str, sections: Sequence[Section]
) -> None:
    """Writes a report: one HTML file with its style and pictures inside, readable offline and on paper."""
    body = "\n".join(_section(section) for section in sections if section.items)
    files.write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>\n{body}\n"
        f"</main>\n</body>\n</html>\n",
    )


def charts_of(rows: Sequence[Mapping[str, Any]], *, leave_out: Sequence[str] = ("seconds",)) -> list[Chart]:
    """One chart a scalar of metrics.jsonl rows of one stage, the total loss and the PSNR first.

    Values over more than a decade, all positive, get a logarithmic axis.
    """
    names: dict[str, None] = {}
    for row in rows:
        names |= {name: None for name in row if name not in ("stage", "step", *leave_out)}
    order = sorted(names, key=lambda name: ("loss", "psnr", name).index(name))
    charts = []
    for name in order:
        pairs = [(row["step"], row[name]) for row in rows if name in row]
        values = [y for _, y in pairs if y is not None]
        wide = bool(values) and min(values) > 0 and max(values) > 10.0 * min(values)
        x, y = [x for x, _ in pairs], [y for _, y in pairs]
        charts.append(
            Chart(
                title=readable(name),
                curves={name: (x, y)},
                x_label="step",
                y_label="dB" if "psnr" in name else "",
                log_y=wide,
            )
        )
    return charts


def settings_table(settings: Mapping[str, Any]) -> Table:
    """A nested configuration as rows of dotted key and value."""

    def flat(prefix: str, value: Any) -> list[tuple[str, str]]:
        if isinstance(value, Mapping) and value:
            return [row for key, item in value.items() for row in flat(f"{prefix}.{key}".lstrip("."), item)]
        return [(prefix, json.dumps(files.plain(value)))]

    return Table(header=("setting", "value"), rows=flat("", settings))


def readable(name: str) -> str:
    """A scalar's name as people write it."""
    names = {
        "psnr": "PSNR",
        "psnr_mask": "PSNR, head only",
        "ssim": "SSIM",
        "lpips_vgg": "LPIPS (VGG16)",
        "lpips_alex": "LPIPS (AlexNet)",
    }
    if name in names:
        return names[name]
    words = name.replace("_", " ").replace("/", ", ").replace("psnr", "PSNR").replace("lpips", "LPIPS")
    return words[:1].upper() + words[1:]


def duration(seconds: float) -> str:
    """A time as people write it, in its two largest units: 4.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if round(seconds) >= size)
    (big, big_size), (small, small_size) = units[first : first + 2]
    whole, rest = divmod(round(seconds / small_size), big_size // small_size)
    return f"{whole} {big} {rest} {small}" if rest else f"{whole} {big}"


def size_in_bytes(count: float) -> str:
    """A size as people write it: 812 MB, 3.4 GB (powers of 1000)."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def _section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.heading)}</h2>"
    content = "\n".join(_item(item) for item in section.items)
    if section.folded:
        return f"<details><summary>{heading}</summary>\n{content}\n</details>"
    return f"<section>\n{heading}\n{content}\n</section>"


def _item(item: Figures | Table | Charts | Picture | Note) -> str:
    match item:
        case Figures():
            cells = (
                f"<div><b>{html.escape(v)}</b><span>{html.escape(n)}</span></div>" for v, n in item.items
            )
            return f'<div class="figures">{"".join(cells)}</div>'
        case Table():
            return _table(item)
        case Charts():
            drawn = "".join(f"<div>{chart_svg(chart)}</div>" for chart in item.charts)
            return f'<figure><div class="charts">{drawn}</div>{_caption(item.caption)}</figure>'
        case Picture():
            picture = f'<img alt="{html.escape(item.caption)}" src="{_embedded(item)}">'
            return f"<figure>{picture}{_caption(item.caption)}</figure>"
        case Note():
            return f"<p>{html.escape(item.text)}</p>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>" if text else ""


def _embedded(item: Picture) -> str:
    """A data URI; JPEG, for a report of dozens of grids stays small enough to send."""
    if isinstance(item.image, np.ndarray):
        picture, statement = Image.fromarray(files.to_bytes(item.image)).convert("RGB"), item.statement
    else:
        statement = read_marks(item.image)
        with Image.open(item.image) as opened:
            picture = opened.convert("RGB")
    if picture.width > _WIDEST:
        picture = picture.resize(
            (_WIDEST, round(picture.height * _WIDEST / picture.width)), Image.Resampling.LANCZOS
        )
    data = files.encode_image(
        np.asarray(picture), ".jpg", quality=88, xmp=statement.xmp if statement else b""
    )
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
