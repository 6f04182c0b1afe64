"""The compiled inner loops of the head renderer. Arrays are float32; nothing here allocates per pixel.

Every kernel is sequential, so its output has the same bits however many worker processes run.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

_jit = numba.njit(
    cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, nogil=True, error_model="numpy"
)


@_jit
@no_type_check  # a checker that wraps functions cannot be compiled
def _row_span(y, x0, y0, x1, y1, x2, y2, width):
    """First and one-past-last pixel whose centre lies in a triangle on row y; empty where first >= last."""
    lo, hi = np.float32(1e9), np.float32(-1e9)
    py = np.float32(y + 0.5)
    for k in range(3):
        if k == 0:
            ax, ay, bx, by = x0, y0, x1, y1
        elif k == 1:
            ax, ay, bx, by = x1, y1, x2, y2
        else:
            ax, ay, bx, by = x2, y2, x0, y0
        if (ay <= py) != (by <= py):
            x = ax + (py - ay) / (by - ay) * (bx - ax)
            lo = min(lo, x)
            hi = max(hi, x)
    if hi < lo:
        return 0, 0
    return max(0, int(np.ceil(lo - 0.5))), min(width, int(np.ceil(hi - 0.5)))


@_jit
@no_type_check
def depth_pass(points, depth, faces, buffer):
    """Nearest orthographic depth of each pixel centre, into `buffer`."""
    height, width = buffer.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1 = points[a, 0], points[a, 1], points[b, 0], points[b, 1]
        x2, y2 = points[c, 0], points[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        du, dv = depth[b] - depth[a], depth[c] - depth[a]
        zx = (du * (y2 - y0) - dv * (y1 - y0)) / area
        zy = (dv * (x1 - x0) - du * (x2 - x0)) / area
        top = max(0, int(np.ceil(min(y0, y1, y2) - 0.5)))
        bottom = min(height, int(np.ceil(max(y0, y1, y2) - 0.5)))
        for y in range(top, bottom):
            first, last = _row_span(y, x0, y0, x1, y1, x2, y2, width)
            z = depth[a] + zx * (first + 0.5 - x0) + zy * (y + 0.5 - y0)
            for x in range(first, last):
                if z < buffer[y, x]:
                    buffer[y, x] = z
                z += zx


@_jit
@no_type_check
def light_vertices(points, depth, facing, buffer, colour, wrap, bias, out):
    """Adds one distant light to every vertex: wrapped cosine times how much of a 3x3 patch sees the light."""
    height, width = buffer.shape
    for i in range(points.shape[0]):
        strongest = (facing[i] + wrap[0]) / (1.0 + wrap[0])
        if strongest <= 0.0:
            continue
        px, py = points[i, 0] - 0.5, points[i, 1] - 0.5
        x0, y0 = int(np.floor(px)), int(np.floor(py))
        fx, fy = px - x0, py - y0
        seen = np.float32(0.0)
        for dy in range(-1, 3):  # a 2-texel box, its ends weighted by the fraction: no steps
            wy = (1.0 - fy) if dy == -1 else (fy if dy == 2 else 1.0)
            for dx in range(-1, 3):
                wx = (1.0 - fx) if dx == -1 else (fx if dx == 2 else 1.0)
                x, y = x0 + dx, y0 + dy
                if x < 0 or y < 0 or x >= width or y >= height or depth[i] - bias < buffer[y, x]:
                    seen += wx * wy
        seen /= 9.0
        for k in range(3):
            amount = (facing[i] + wrap[k]) / (1.0 + wrap[k])
            if amount > 0.0:
                out[i, k] += colour[k] * amount * seen


@_jit
@no_type_check
def visibility_pass(points, inverse_depth, faces, cull, nearest, owner):
    """Nearest face of each pixel centre: `nearest` holds 1/z (0 = empty), `owner` the face index."""
    height, width = nearest.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1 = points[a, 0], points[a, 1], points[b, 0], points[b, 1]
        x2, y2 = points[c, 0], points[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        # The image's y runs down, so a face seen from outside has a negative area.
        if abs(area) < 1e-9 or (cull[f] and area > 0.0):
            continue
        du, dv = inverse_depth[b] - inverse_depth[a], inverse_depth[c] - inverse_depth[a]
        zx = (du * (y2 - y0) - dv * (y1 - y0)) / area
        zy = (dv * (x1 - x0) - du * (x2 - x0)) / area
        top = max(0, int(np.ceil(min(y0, y1, y2) - 0.5)))
        bottom = min(height, int(np.ceil(max(y0, y1, y2) - 0.5)))
        for y in range(top, bottom):
            first, last = _row_span(y, x0, y0, x1, y1, x2, y2, width)
            z = inverse_depth[a] + zx * (first + 0.5 - x0) + zy * (y + 0.5 - y0)
            for x in range(first, last):
                if z > nearest[y, x]:
                    nearest[y, x] = z
                    owner[y, x] = f
                z += zx


@_jit
@no_type_check
def _corner_weights(px, py, points, inverse_depth, a, b, c):
    """Perspective-correct barycentric weights of a pixel."""
    x0, y0 = points[a, 0], points[a, 1]
    x1, y1, x2, y2 = points[b, 0] - x0, points[b, 1] - y0, points[c, 0] - x0, points[c, 1] - y0
    area = x1 * y2 - x2 * y1
    qx, qy = px - x0, py - y0
    w1 = (qx * y2 - x2 * qy) / area
    w2 = (x1 * qy - qx * y1) / area
    w0 = (1.0 - w1 - w2) * inverse_depth[a]
    w1 *= inverse_depth[b]
    w2 *= inverse_depth[c]
    total = 1.0 / (w0 + w1 + w2)
    return w0 * total, w1 * total, w2 * total


@_jit
@no_type_check
def _sample(texture, u, v, texel):
    """Bilinear RGBA in [0, 1]; coordinates repeat."""
    height, width = texture.shape[0], texture.shape[1]
    x = (u - np.floor(u)) * width - 0.5
    y = (1.0 - (v - np.floor(v))) * height - 0.5
    xf, yf = np.floor(x), np.floor(y)
    fx, fy = x - xf, y - yf
    xa, ya = min(max(int(xf), 0), width - 1), min(max(int(yf), 0), height - 1)
    xb, yb = min(max(int(xf) + 1, 0), width - 1), min(max(int(yf) + 1, 0), height - 1)
    waa, wab = (1.0 - fy) * (1.0 - fx), (1.0 - fy) * fx
    wba, wbb = fy * (1.0 - fx), fy * fx
    for k in range(4):
        texel[k] = (
            waa * texture[ya, xa, k]
            + wab * texture[ya, xb, k]
            + wba * texture[yb, xa, k]
            + wbb * texture[yb, xb, k]
        ) * np.float32(1.0 / 255.0)


@_jit
@no_type_check
def _display(x):
    """Linear light to display value: square root with a soft shoulder above 0.7, so highlights do not clip."""
    v = np.sqrt(max(x, np.float32(0.0)))
    if v > 0.7:
        v = 0.7 + 0.3 * (1.0 - np.exp(-(v - 0.7) / 0.3))
    return v


@_jit
@no_type_check
def shade_opaque(
    owner, first_face, last_face, faces, uv_faces, points, inverse_depth, positions, normals, irradiance, uvs,
    texture, tint, eye, highlights, specular, gloss, image, box,
):  # fmt: skip
    """Colours the pixels whose nearest face is in [first_face, last_face). The texture's alpha scales the gloss."""
    texel = np.empty(4, np.float32)
    for y in range(box[1], box[3]):
        for x in range(box[0], box[2]):
            f = owner[y, x]
            if f < first_face or f >= last_face:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            w0, w1, w2 = _corner_weights(
                np.float32(x + 0.5), np.float32(y + 0.5), points, inverse_depth, a, b, c
            )
            g = f - first_face
            ua, ub, uc = uv_faces[g, 0], uv_faces[g, 1], uv_faces[g, 2]
            u = w0 * uvs[ua, 0] + w1 * uvs[ub, 0] + w2 * uvs[uc, 0]
            v = w0 * uvs[ua, 1] + w1 * uvs[ub, 1] + w2 * uvs[uc, 1]
            _sample(texture, u, v, texel)
            shine = np.float32(0.0)
            brightness = np.float32(0.0)
            for k in range(3):
                brightness += w0 * irradiance[a, k] + w1 * irradiance[b, k] + w2 * irradiance[c, k]
            if specular > 0.0:
                nx = w0 * normals[a, 0] + w1 * normals[b, 0] + w2 * normals[c, 0]
                ny = w0 * normals[a, 1] + w1 * normals[b, 1] + w2 * normals[c, 1]
                nz = w0 * normals[a, 2] + w1 * normals[b, 2] + w2 * normals[c, 2]
                vx = eye[0] - (w0 * positions[a, 0] + w1 * positions[b, 0] + w2 * positions[c, 0])
                vy = eye[1] - (w0 * positions[a, 1] + w1 * positions[b, 1] + w2 * positions[c, 1])
                vz = eye[2] - (w0 * positions[a, 2] + w1 * positions[b, 2] + w2 * positions[c, 2])
                scale = 1.0 / np.sqrt(vx * vx + vy * vy + vz * vz)
                size = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
                for h in range(highlights.shape[0]):
                    hx, hy = highlights[h, 0] + vx * scale, highlights[h, 1] + vy * scale
                    hz = highlights[h, 2] + vz * scale
                    length = np.sqrt(hx * hx + hy * hy + hz * hz) + 1e-6
                    cosine = (nx * hx + ny * hy + nz * hz) / (length * size)
                    if cosine > 0.0:
                        shine += highlights[h, 3] * cosine**gloss
                # Shadowed skin has no highlight: the light that reaches it measures how open it is.
                shine *= specular * texel[3] * min(np.float32(1.0), brightness / np.float32(2.0))
            for k in range(3):
                albedo = texel[k] * tint[k]
                light = w0 * irradiance[a, k] + w1 * irradiance[b, k] + w2 * irradiance[c, k]
                image[y, x, k] = _display(albedo * albedo * light + shine)
            image[y, x, 3] = 1.0


@_jit
@no_type_check
def paint_opaque(
    owner, first_face, last_face, faces, uv_faces, points, inverse_depth, colours, uvs, texture, image, box
):  # fmt: skip
    """Texture times vertex colour, without light, at the pixels whose nearest face is in [first_face, last_face)."""
    texel = np.empty(4, np.float32)
    for y in range(box[1], box[3]):
        for x in range(box[0], box[2]):
            f = owner[y, x]
            if f < first_face or f >= last_face:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            w0, w1, w2 = _corner_weights(
                np.float32(x + 0.5), np.float32(y + 0.5), points, inverse_depth, a, b, c
            )
            g = f - first_face
            ua, ub, uc = uv_faces[g, 0], uv_faces[g, 1], uv_faces[g, 2]
            u = w0 * uvs[ua, 0] + w1 * uvs[ub, 0] + w2 * uvs[uc, 0]
            v = w0 * uvs[ua, 1] + w1 * uvs[ub, 1] + w2 * uvs[uc, 1]
            _sample(texture, u, v, texel)
            for k in range(3):
                image[y, x, k] = texel[k] * (w0 * colours[a, k] + w1 * colours[b, k] + w2 * colours[c, k])
            image[y, x, 3] = 1.0


@_jit
@no_type_check
def blend_transparent(
    order, faces, uv_faces, points, inverse_depth, irradiance, uvs, texture, tint, grey,
    nearest, bias, image,
):  # fmt: skip
    """Blends the faces of `order` that belong to one part over the image, in display space, far to near."""
    height, width = nearest.shape
    texel = np.empty(4, np.float32)
    for i in range(order.shape[0]):
        f = order[i]
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1 = points[a, 0], points[a, 1], points[b, 0], points[b, 1]
        x2, y2 = points[c, 0], points[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-6:
            continue
        ua, ub, uc = uv_faces[f, 0], uv_faces[f, 1], uv_faces[f, 2]
        top = max(0, int(np.ceil(min(y0, y1, y2) - 0.5)))
        bottom = min(height, int(np.ceil(max(y0, y1, y2) - 0.5)))
        for y in range(top, bottom):
            first, last = _row_span(y, x0, y0, x1, y1, x2, y2, width)
            for x in range(first, last):
                w0, w1, w2 = _corner_weights(
                    np.float32(x + 0.5), np.float32(y + 0.5), points, inverse_depth, a, b, c
                )
                iz = w0 * inverse_depth[a] + w1 * inverse_depth[b] + w2 * inverse_depth[c]
                if iz * bias < nearest[y, x]:
                    continue
                u = w0 * uvs[ua, 0] + w1 * uvs[ub, 0] + w2 * uvs[uc, 0]
                v = w0 * uvs[ua, 1] + w1 * uvs[ub, 1] + w2 * uvs[uc, 1]
                _sample(texture, u, v, texel)
                alpha = texel[3]
                if alpha < 0.02:
                    continue
                level = 0.299 * texel[0] + 0.587 * texel[1] + 0.114 * texel[2]
                for k in range(3):
                    albedo = min(np.float32(1.0), (texel[k] * (1.0 - grey) + level * grey) * tint[k])
                    light = w0 * irradiance[a, k] + w1 * irradiance[b, k] + w2 * irradiance[c, k]
                    value = _display(albedo * albedo * light)
                    image[y, x, k] += alpha * (value - image[y, x, k])
                image[y, x, 3] += alpha * (1.0 - image[y, x, 3])


@_jit
@no_type_check
def vertex_normals(vertices, faces, out):
    """Area-weighted unit normals of the vertices."""
    out[:] = 0.0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            out[k, 0] += nx
            out[k, 1] += ny
            out[k, 2] += nz
    for i in range(out.shape[0]):
        size = np.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2) + 1e-20
        for k in range(3):
            out[i, k] /= size


@_jit
@no_type_check
def paint_attribute(points, faces, values, out, filled):
    """Interpolates per-corner values over triangles in an image plane (a texture's position map)."""
    height, width = filled.shape
    for f in range(faces.shape[0]):
        x0, y0, x1, y1 = points[f, 0, 0], points[f, 0, 1], points[f, 1, 0], points[f, 1, 1]
        x2, y2 = points[f, 2, 0], points[f, 2, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-9:
            continue
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        top = max(0, int(np.ceil(min(y0, y1, y2) - 0.5)))
        bottom = min(height, int(np.ceil(max(y0, y1, y2) - 0.5)))
        for y in range(top, bottom):
            first, last = _row_span(y, x0, y0, x1, y1, x2, y2, width)
            for x in range(first, last):
                qx, qy = x + 0.5 - x0, y + 0.5 - y0
                w1 = (qx * (y2 - y0) - (x2 - x0) * qy) / area
                w2 = ((x1 - x0) * qy - qx * (y1 - y0)) / area
                for k in range(values.shape[1]):
                    out[y, x, k] = (1.0 - w1 - w2) * values[a, k] + w1 * values[b, k] + w2 * values[c, k]
                filled[y, x] = True


@_jit
@no_type_check
def _lattice(i, j, k):
    """A repeatable pseudo-random value in [-1, 1] for an integer lattice point."""
    h = np.uint32(i * 374761393 + j * 668265263 + k * 2147483647)
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    h = np.uint32(h ^ (h >> np.uint32(16)))
    return np.float32(h & np.uint32(0xFFFF)) / np.float32(32767.5) - np.float32(1.0)


@_jit
@no_type_check
def value_noise(positions, mask, frequency, shift, out):
    """Smooth 3D value noise in [-1, 1] at every masked position, at `frequency` lattice cells a unit."""
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            px = positions[y, x, 0] * frequency[0] + shift[0]
            py = positions[y, x, 1] * frequency[1] + shift[1]
            pz = positions[y, x, 2] * frequency[2] + shift[2]
            i, j, k = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = px - i, py - j, pz - k
            fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
            total = np.float32(0.0)
            for dz in range(2):
                wz = fz if dz else 1.0 - fz
                for dy in range(2):
                    wy = fy if dy else 1.0 - fy
                    total += (
                        wz
                        * wy
                        * ((1.0 - fx) * _lattice(i, j + dy, k + dz) + fx * _lattice(i + 1, j + dy, k + dz))
                    )
            out[y, x] = total
