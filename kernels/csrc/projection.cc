// Projection of 3D Gaussians into the image, forward and backward; the formulas are those of reference/projection.py.
//
// With p = W mean + t, u = x / z, v = y / z and the Gaussian's axes a_k = scale_k W R(quat) e_k, the rows of J W R S are
//
//   f_k = fx / z (a_k.x - u a_k.z),  g_k = fy / z (a_k.y - v a_k.z),
//
// and the conic is the inverse of S2 = [[f.f + e, f.g], [f.g, g.g + e]] with e = eps2d. A splat that cannot be drawn is
// computed with harmless values instead, and gets no gradient. Splats are taken a vector at a time; the camera's
// gradient is summed in chunks of a fixed size, so that it has the same bits for any number of threads.
#include <cmath>

#include "cpu_ops.h"
#include "memory.h"
#include "vectors.h"

namespace gphm {
namespace GPHM_ISA {

namespace {

constexpr int64_t kChunk = 4096;  // splats; a multiple of every vector's length
constexpr int kCameraSums = 16;   // W by rows, t, fx, fy, cx, cy
constexpr float kInfinite = 1e30f, kMaxConic = 1e9f;  // as in reference/projection.py

struct Vec3 {
  Vec x, y, z;
};

GPHM_INLINE Vec3 operator+(const Vec3& a, const Vec3& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
GPHM_INLINE Vec3 operator-(const Vec3& a, const Vec3& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
GPHM_INLINE Vec3 operator*(Vec s, const Vec3& a) { return {s * a.x, s * a.y, s * a.z}; }
GPHM_INLINE Vec dot(const Vec3& a, const Vec3& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
GPHM_INLINE Vec3 cross(const Vec3& a, const Vec3& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

GPHM_INLINE Vec absolute(Vec x) { return select(x < Vec{}, -x, x); }
GPHM_INLINE Vec larger(Vec a, Vec b) { return select(a > b, a, b); }
GPHM_INLINE Mask finite(Vec x) { return absolute(x) < splat(kInfinite); }  // false for a NaN
GPHM_INLINE Mask finite(const Vec3& a) { return finite(a.x) & finite(a.y) & finite(a.z); }

struct Camera {
  Vec3 row[3];  // of the rotation W
  Vec3 column[3];
  Vec3 translation;
  Vec fx, fy, cx, cy;

  Camera(const float* pose, const float* k)
      : translation{splat(pose[3]), splat(pose[7]), splat(pose[11])},
        fx(splat(k[0])),
        fy(splat(k[4])),
        cx(splat(k[2])),
        cy(splat(k[5])) {
    for (int i = 0; i < 3; ++i) {
      row[i] = {splat(pose[4 * i]), splat(pose[4 * i + 1]), splat(pose[4 * i + 2])};
      column[i] = {splat(pose[i]), splat(pose[4 + i]), splat(pose[8 + i])};
    }
  }
  Vec3 turn(const Vec3& a) const { return {dot(row[0], a), dot(row[1], a), dot(row[2], a)}; }
  Vec3 turn_back(const Vec3& a) const {
    return {dot(column[0], a), dot(column[1], a), dot(column[2], a)};
  }
};

// Rows of `width` floats <-> one vector a column. Lanes past `number` read zeros and write nothing.
template <int kWidth>
GPHM_INLINE void read_rows(const float* from, int64_t number, Vec (&columns)[kWidth]) {
  alignas(64) float block[kWidth][kLanes] = {};
  for (int64_t lane = 0; lane < number; ++lane) {
    for (int c = 0; c < kWidth; ++c) block[c][lane] = from[lane * kWidth + c];
  }
  for (int c = 0; c < kWidth; ++c) columns[c] = load<Vec>(block[c]);
}
template <int kWidth>
GPHM_INLINE void write_rows(float* to, int64_t number, const Vec (&columns)[kWidth]) {
  alignas(64) float block[kWidth][kLanes];
  for (int c = 0; c < kWidth; ++c) store(block[c], columns[c]);
  for (int64_t lane = 0; lane < number; ++lane) {
    for (int c = 0; c < kWidth; ++c) to[lane * kWidth + c] = block[c][lane];
  }
}

GPHM_INLINE Vec3 read3(const float* from, int64_t number) {
  Vec columns[3];
  read_rows(from, number, columns);
  return {columns[0], columns[1], columns[2]};
}

struct Quat {
  Vec w, x, y, z;
};

// One splat a lane, and what its projection leaves for the gradient.
struct Splats {
  Vec3 mean, scale, point, unscaled[3], axis[3], rotation[3];  // unscaled: W R e_k; rotation: R e_k
  Quat unit;          // of length one
  Vec length;         // of the quaternion given
  Vec u, v, f_scale, g_scale;  // fx / z, fy / z
  Vec3 f, g;          // the rows of J W R S
  Vec3 solved_f, solved_g;  // of S2^-1 J W R S, where S2^-1 is the conic
  Vec mean_x, mean_y, a, b, c;
  Vec depth;  // as it is, drawn or not
  Mask drawn;
};

GPHM_INLINE void rotate(const Quat& q, Vec3 (&columns)[3]) {
  const Vec w = q.w, x = q.x, y = q.y, z = q.z;
  columns[0] = {1.f - 2.f * (y * y + z * z), 2.f * (x * y + w * z), 2.f * (x * z - w * y)};
  columns[1] = {2.f * (x * y - w * z), 1.f - 2.f * (x * x + z * z), 2.f * (y * z + w * x)};
  columns[2] = {2.f * (x * z + w * y), 2.f * (y * z - w * x), 1.f - 2.f * (x * x + y * y)};
}

// The projection of what `s` holds: point, unit quaternion and scale.
GPHM_INLINE void project_point(const Camera& camera, float eps2d, Splats& s) {
  s.u = s.point.x / s.point.z, s.v = s.point.y / s.point.z;
  s.f_scale = camera.fx / s.point.z, s.g_scale = camera.fy / s.point.z;
  rotate(s.unit, s.rotation);
  const Vec scale[3] = {s.scale.x, s.scale.y, s.scale.z};
  for (int k = 0; k < 3; ++k) {
    s.unscaled[k] = camera.turn(s.rotation[k]);
    s.axis[k] = scale[k] * s.unscaled[k];
  }
  s.f = s.f_scale * (Vec3{s.axis[0].x, s.axis[1].x, s.axis[2].x} - s.u * Vec3{s.axis[0].z, s.axis[1].z, s.axis[2].z});
  s.g = s.g_scale * (Vec3{s.axis[0].y, s.axis[1].y, s.axis[2].y} - s.v * Vec3{s.axis[0].z, s.axis[1].z, s.axis[2].z});
  const Vec3 normal = cross(s.f, s.g);
  const Vec ff = dot(s.f, s.f), gg = dot(s.g, s.g);
  // Lagrange's identity: a sum of positive terms, where the usual difference cancels for needles.
  const Vec determinant = dot(normal, normal) + eps2d * (ff + gg) + eps2d * eps2d, inverse = 1.f / determinant;
  s.a = (gg + eps2d) / determinant, s.b = -dot(s.f, s.g) / determinant, s.c = (ff + eps2d) / determinant;
  // By the same identity, and for the same reason: a f + b g would cancel.
  s.solved_f = inverse * (splat(eps2d) * s.f + cross(s.g, normal));
  s.solved_g = inverse * (splat(eps2d) * s.g - cross(s.f, normal));
  s.mean_x = camera.fx * s.u + camera.cx, s.mean_y = camera.fy * s.v + camera.cy;
}

// Whether every channel of each splat is a finite number.
GPHM_INLINE Mask finite_features(const float* features, int64_t number, int64_t channels) {
  Mask all{};
  for (int64_t lane = 0; lane < number; ++lane) {
    Mask infinite{};
    each_vector(channels, [&](int64_t at, int64_t part) __attribute__((always_inline)) {
      infinite |= ~finite(load(features + lane * channels + at, part));
    });
    all[lane] = any(infinite) ? 0 : -1;
  }
  return all;
}

// Splats [first, first + number) of an image's arrays, with harmless values where they cannot be drawn.
GPHM_INLINE Splats load_splats(const ProjectInputs& in, const Camera& camera, int64_t first, int64_t number) {
  Splats s;
  s.mean = read3(in.means + 3 * first, number);
  s.scale = read3(in.scales + 3 * first, number);
  Vec q[4];
  read_rows(in.quats + 4 * first, number, q);
  const Vec opacity = load(in.opacities + first, number);
  Mask drawn = finite_features(in.features + first * in.channels, number, in.channels);
  drawn &= finite(s.mean) & finite(opacity);
  s.mean = {keep(drawn, s.mean.x), keep(drawn, s.mean.y), keep(drawn, s.mean.z)};
  s.point = camera.turn(s.mean) + camera.translation;
  s.depth = s.point.z;
  drawn &= finite(s.point) & finite(s.scale) & finite(q[0]) & finite(q[1]) & finite(q[2]) & finite(q[3]);
  const Vec largest = larger(larger(absolute(q[0]), absolute(q[1])), larger(absolute(q[2]), absolute(q[3])));
  drawn &= (s.point.z >= splat(in.near)) & (s.point.z <= splat(in.far)) & (largest > Vec{});
  for (int round = 0;; ++round) {
    const Vec one = splat(1.f), most = select(drawn, largest, one);
    Splats fixed = s;
    fixed.point = {keep(drawn, s.point.x), keep(drawn, s.point.y), select(drawn, s.point.z, one)};
    fixed.scale = {select(drawn, s.scale.x, one), select(drawn, s.scale.y, one), select(drawn, s.scale.z, one)};
    // The largest component becomes one first, so that squares neither overflow nor vanish.
    Quat unit{select(drawn, q[0], one) / most, keep(drawn, q[1]) / most, keep(drawn, q[2]) / most,
              keep(drawn, q[3]) / most};
    const Vec length = root(unit.w * unit.w + unit.x * unit.x + unit.y * unit.y + unit.z * unit.z);
    fixed.unit = {unit.w / length, unit.x / length, unit.y / length, unit.z / length};
    fixed.length = most * length;
    project_point(camera, in.eps2d, fixed);
    fixed.drawn = drawn & finite(fixed.mean_x) & finite(fixed.mean_y) & (fixed.a > Vec{}) & finite(fixed.b) &
                  (fixed.c > Vec{}) & (larger(fixed.a, fixed.c) < splat(kMaxConic));
    // What came out unfit is replaced as well, since the gradient runs through all that is computed here. Twice is
    // enough: splats do not touch each other, and the harmless values are fit.
    if (round || !any(drawn & ~fixed.drawn)) return fixed;
    drawn = fixed.drawn;
  }
}

// d a_k etc. of one block of splats: gradients of the inputs, and the camera's sums.
GPHM_INLINE void differentiate(const Camera& camera, const Splats& s, const Vec (&d_mean2d)[2], const Vec (&d_conic)[3],
                               Vec3& d_mean, Vec3& d_scale, Quat& d_quat, Vec (&sums)[kCameraSums]) {
  // d M = -2 S2^-1 G S2^-1 M for the rows M = (f, g), where G is d_conic as a symmetric matrix.
  const Vec3 h_f = d_conic[0] * s.solved_f + 0.5f * d_conic[1] * s.solved_g;
  const Vec3 h_g = 0.5f * d_conic[1] * s.solved_f + d_conic[2] * s.solved_g;
  const Vec3 d_f = -2.f * s.a * h_f - 2.f * s.b * h_g, d_g = -2.f * s.b * h_f - 2.f * s.c * h_g;
  const Vec3 along_f = s.f_scale * d_f, along_g = s.g_scale * d_g;
  const Vec3 axis_z{s.axis[0].z, s.axis[1].z, s.axis[2].z};
  const Vec d_u = camera.fx * d_mean2d[0] - dot(along_f, axis_z), d_v = camera.fy * d_mean2d[1] - dot(along_g, axis_z);
  const Vec inverse = 1.f / s.point.z;
  const Vec d_fx = inverse * dot(d_f, Vec3{s.axis[0].x, s.axis[1].x, s.axis[2].x} - s.u * axis_z);
  const Vec d_fy = inverse * dot(d_g, Vec3{s.axis[0].y, s.axis[1].y, s.axis[2].y} - s.v * axis_z);
  const Vec scale[3] = {s.scale.x, s.scale.y, s.scale.z};
  const Vec d_axis_x[3] = {along_f.x, along_f.y, along_f.z}, d_axis_y[3] = {along_g.x, along_g.y, along_g.z};
  Vec d_scales[3];
  Vec3 d_rotation[3];
  Vec3 d_row[3] = {};
  for (int k = 0; k < 3; ++k) {
    const Vec3 d_axis{d_axis_x[k], d_axis_y[k], -(s.u * d_axis_x[k] + s.v * d_axis_y[k])};
    d_scales[k] = dot(d_axis, s.unscaled[k]);
    const Vec3 scaled = scale[k] * d_axis;
    d_rotation[k] = camera.turn_back(scaled);
    d_row[0] = d_row[0] + scaled.x * s.rotation[k];
    d_row[1] = d_row[1] + scaled.y * s.rotation[k];
    d_row[2] = d_row[2] + scaled.z * s.rotation[k];
  }
  d_scale = {d_scales[0], d_scales[1], d_scales[2]};
  const Vec3 d_point{d_u * inverse, d_v * inverse,
                     -inverse * (s.u * d_u + s.v * d_v + dot(d_f, s.f) + dot(d_g, s.g))};
  d_mean = camera.turn_back(d_point);

  const Vec3* d = d_rotation;  // by columns: d[k] is the gradient of R e_k
  const Vec w = s.unit.w, x = s.unit.x, y = s.unit.y, z = s.unit.z;
  Quat q;
  q.w = 2.f * (z * (d[0].y - d[1].x) + y * (d[2].x - d[0].z) + x * (d[1].z - d[2].y));
  q.x = 2.f * (y * (d[1].x + d[0].y) + z * (d[2].x + d[0].z) + w * (d[1].z - d[2].y) - 2.f * x * (d[1].y + d[2].z));
  q.y = 2.f * (x * (d[1].x + d[0].y) + w * (d[2].x - d[0].z) + z * (d[2].y + d[1].z) - 2.f * y * (d[0].x + d[2].z));
  q.z = 2.f * (w * (d[0].y - d[1].x) + x * (d[2].x + d[0].z) + y * (d[2].y + d[1].z) - 2.f * z * (d[0].x + d[1].y));
  const Vec along = q.w * w + q.x * x + q.y * y + q.z * z;  // normalising removes this part
  d_quat = {(q.w - along * w) / s.length, (q.x - along * x) / s.length, (q.y - along * y) / s.length,
            (q.z - along * z) / s.length};

  const Vec points[3] = {d_point.x, d_point.y, d_point.z};
  for (int i = 0; i < 3; ++i) {
    const Vec3 row = d_row[i] + points[i] * s.mean;
    sums[3 * i] += keep(s.drawn, row.x), sums[3 * i + 1] += keep(s.drawn, row.y);
    sums[3 * i + 2] += keep(s.drawn, row.z), sums[9 + i] += keep(s.drawn, points[i]);
  }
  sums[12] += keep(s.drawn, s.u * d_mean2d[0] + d_fx), sums[13] += keep(s.drawn, s.v * d_mean2d[1] + d_fy);
  sums[14] += keep(s.drawn, d_mean2d[0]), sums[15] += keep(s.drawn, d_mean2d[1]);
}

}  // namespace

void project_fwd(const ProjectInputs& in, const ProjectResults& out, Parallel& parallel) {
  const int64_t chunks = blocks(in.splats, kChunk);
  parallel.run(in.batch * chunks, [&](int64_t task, int) {
    const int64_t image = task / chunks, from = image * in.splats;
    const int64_t begin = from + task % chunks * kChunk, end = smaller(begin + kChunk, from + in.splats);
    const Camera camera(in.world_to_camera + 16 * image, in.intrinsics + 9 * image);
    for (int64_t first = begin; first < end; first += kLanes) {
      const int64_t number = smaller(kLanes, end - first);
      const Splats s = load_splats(in, camera, first, number);
      const Vec mean[2] = {keep(s.drawn, s.mean_x), keep(s.drawn, s.mean_y)};
      // What is not drawn sits at the image's corner as a small round dot of opacity zero.
      const Vec conic[3] = {select(s.drawn, s.a, splat(1.f)), keep(s.drawn, s.b), select(s.drawn, s.c, splat(1.f))};
      write_rows(out.means2d + 2 * first, number, mean);
      write_rows(out.conics + 3 * first, number, conic);
      store(out.opacities + first, keep(s.drawn, load(in.opacities + first, number)), number);
      store(out.depths + first, s.depth, number);
    }
  });
}

void project_bwd(const ProjectInputs& in, const ProjectCotangents& d, const ProjectGradients& out, Parallel& parallel) {
  const int64_t chunks = blocks(in.splats, kChunk);
  Array<float> partial(in.batch * chunks * kCameraSums);
  parallel.run(in.batch * chunks, [&](int64_t task, int) {
    const int64_t image = task / chunks, from = image * in.splats;
    const int64_t begin = from + task % chunks * kChunk, end = smaller(begin + kChunk, from + in.splats);
    const Camera camera(in.world_to_camera + 16 * image, in.intrinsics + 9 * image);
    Vec sums[kCameraSums] = {};
    for (int64_t first = begin; first < end; first += kLanes) {
      const int64_t number = smaller(kLanes, end - first);
      const Splats s = load_splats(in, camera, first, number);
      Vec d_mean2d[2], d_conic[3];
      read_rows(d.means2d + 2 * first, number, d_mean2d);
      read_rows(d.conics + 3 * first, number, d_conic);
      Vec3 d_mean, d_scale;
      Quat d_quat;
      differentiate(camera, s, d_mean2d, d_conic, d_mean, d_scale, d_quat, sums);
      const Vec mean[3] = {keep(s.drawn, d_mean.x), keep(s.drawn, d_mean.y), keep(s.drawn, d_mean.z)};
      const Vec scale[3] = {keep(s.drawn, d_scale.x), keep(s.drawn, d_scale.y), keep(s.drawn, d_scale.z)};
      const Vec quat[4] = {keep(s.drawn, d_quat.w), keep(s.drawn, d_quat.x), keep(s.drawn, d_quat.y),
                           keep(s.drawn, d_quat.z)};
      write_rows(out.means + 3 * first, number, mean);
      write_rows(out.scales + 3 * first, number, scale);
      write_rows(out.quats + 4 * first, number, quat);
      store(out.opacities + first, keep(s.drawn, load(d.opacities + first, number)), number);
    }
    for (int i = 0; i < kCameraSums; ++i) partial[task * kCameraSums + i] = sum(sums[i]);
  });
  for (int64_t image = 0; image < in.batch; ++image) {
    double total[kCameraSums] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int i = 0; i < kCameraSums; ++i) total[i] += partial[(image * chunks + chunk) * kCameraSums + i];
    }
    float* pose = out.world_to_camera + 16 * image;
    float* k = out.intrinsics + 9 * image;
    std::memset(pose, 0, 16 * sizeof(float)), std::memset(k, 0, 9 * sizeof(float));
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) pose[4 * i + j] = static_cast<float>(total[3 * i + j]);
      pose[4 * i + 3] = static_cast<float>(total[9 + i]);
    }
    k[0] = static_cast<float>(total[12]), k[4] = static_cast<float>(total[13]);
    k[2] = static_cast<float>(total[14]), k[5] = static_cast<float>(total[15]);
  }
}

}  // namespace GPHM_ISA
}  // namespace gphm
