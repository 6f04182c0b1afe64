// One head: splats = base + sum of weight x delta over the expressions; weights come from sliders or from the clip.
import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { ExtSplats, SparkRenderer, SplatMesh } from "@sparkjsdev/spark";

const AWAKE_MS = 700; // pictures go on being drawn for this long after a change: sorting ends later than drawing
const TEXTURE_ROW = 2048; // Spark keeps splats in whole rows of a texture this wide
const TYPES = { float32: Float32Array, int16: Int16Array, int8: Int8Array, uint32: Uint32Array };

export async function start(scene, buffer) {
  const head = new Head(scene, buffer);
  const view = await openView(scene, head);
  connect(scene, head, view);
  window.head = { weights: head.weights, drawn: () => view.drawn }; // for a console, and for tests
  await view.first;
}

class Head {
  constructor(scene, buffer) {
    this.array = {};
    this.step = {};
    for (const [name, { type, offset, length, step }] of Object.entries(scene.arrays)) {
      this.array[name] = new TYPES[type](buffer, offset, length);
      this.step[name] = step;
    }
    this.count = scene.count;
    this.weights = new Float32Array(scene.targets.length + scene.clip.frames);
    const words = 4 * TEXTURE_ROW * Math.ceil(this.count / TEXTURE_ROW);
    const extArrays = [new Uint32Array(words), new Uint32Array(words)];
    this.splats = new ExtSplats({ extArrays, numSplats: this.count });
    this.mesh = new SplatMesh({ splats: this.splats, enableLod: false });
    this.now = {};
    for (const name of ["means", "quats", "logScales", "logits", "colors"]) {
      this.now[name] = new Float32Array(this.array[name].length);
    }
    this.apply();
  }

  // Evaluates all splats for the weights of now and hands them to the renderer.
  apply() {
    for (const [name, values] of Object.entries(this.now)) values.set(this.array[name]);
    this.weights.forEach((weight, target) => {
      if (Math.abs(weight) > 1e-4) this.add(target, weight);
    });
    const { means, quats, logScales, logits, colors } = this.now;
    const center = new THREE.Vector3(), scales = new THREE.Vector3(), color = new THREE.Color();
    const turn = new THREE.Quaternion();
    for (let n = 0, i = 0, q = 0; n < this.count; n++, i += 3, q += 4) {
      center.set(means[i], means[i + 1], means[i + 2]);
      scales.set(Math.exp(logScales[i]), Math.exp(logScales[i + 1]), Math.exp(logScales[i + 2]));
      turn.set(quats[q + 1], quats[q + 2], quats[q + 3], quats[q]).normalize();
      color.r = colors[i]; color.g = colors[i + 1]; color.b = colors[i + 2];
      this.splats.setSplat(n, center, scales, turn, 1 / (1 + Math.exp(-logits[n])), color);
    }
    for (const texture of this.splats.textures) texture.needsUpdate = true;
    this.mesh.updateVersion();
  }

  add(target, weight) {
    const rows = this.array.moved, delta = this.array.meansDelta;
    let gain = weight * this.step.meansDelta, from = target * rows.length * 3;
    const means = this.now.means;
    for (let k = 0; k < rows.length; k++, from += 3) {
      const to = 3 * rows[k];
      means[to] += gain * delta[from];
      means[to + 1] += gain * delta[from + 1];
      means[to + 2] += gain * delta[from + 2];
    }
    for (const name of ["quats", "logScales", "logits", "colors"]) {
      const values = this.now[name], deltas = this.array[`${name}Delta`];
      gain = weight * this.step[`${name}Delta`];
      from = target * values.length;
      for (let k = 0; k < values.length; k++) values[k] += gain * deltas[from + k];
    }
  }
}

async function openView(scene, head) {
  const stage = document.getElementById("stage");
  const renderer = new THREE.WebGLRenderer({ antialias: false, alpha: true });
  renderer.setClearColor(0x000000, 0);
  stage.append(renderer.domElement);
  const world = new THREE.Scene();
  const view = { drawn: 0, awakeUntil: 0 };
  view.wake = () => { view.awakeUntil = performance.now() + AWAKE_MS; };
  const spark = new SparkRenderer({ renderer, onDirty: view.wake, accumExtSplats: true, sortRadial: false, blurAmount: 0 });
  world.add(spark, head.mesh);
  const camera = new THREE.PerspectiveCamera(scene.camera.fov, 1, 0.01, 100);
  const controls = new OrbitControls(camera, renderer.domElement);
  Object.assign(controls, { enableDamping: true, dampingFactor: 0.12, enablePan: false, minDistance: 0.8, maxDistance: 12 });
  view.front = () => {
    camera.position.fromArray(scene.camera.position);
    controls.target.fromArray(scene.camera.target);
    controls.update();
    view.wake();
  };
  view.front();
  controls.addEventListener("change", view.wake);
  const resize = () => {
    const { clientWidth: width, clientHeight: height } = stage;
    if (!width || !height) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    renderer.setPixelRatio(ratio);
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    // The field of view belongs to the shorter side, as that of the square pictures it was fitted with.
    const half = Math.tan(THREE.MathUtils.degToRad(scene.camera.fov) / 2);
    camera.fov = THREE.MathUtils.radToDeg(2 * Math.atan(half * Math.max(1, height / width)));
    camera.updateProjectionMatrix();
    // Training widens every splat by 0.3 square pixels of its own, smaller pictures.
    spark.preBlurAmount = 0.3 * (Math.min(width, height) * ratio / scene.camera.size) ** 2;
    view.wake();
  };
  new ResizeObserver(resize).observe(stage);
  resize();
  view.first = new Promise((resolve) => {
    renderer.setAnimationLoop((time) => {
      view.step?.(time);
      controls.update();
      if (performance.now() > view.awakeUntil) return;
      renderer.render(world, camera);
      view.drawn++;
      if (spark.activeSplats > 0) resolve();
    });
  });
  await head.mesh.initialized;
  return view;
}

function connect(scene, head, view) {
  const find = (id) => document.getElementById(id);
  const play = find("play"), time = find("time");
  const clip = scene.clip, names = scene.targets;
  const seconds = clip.frames > 1 ? (clip.frames - 1) / clip.fps : 2 * names.length;
  const sliders = names.map((name, k) => addSlider(find("sliders"), name, (value) => set(k, value)));
  const state = { playing: false, at: 0, last: 0 };

  const show = () => {
    sliders.forEach((slider, k) => slider.show(head.weights[k]));
    time.value = String(Math.round(1000 * state.at / seconds));
    head.apply();
    view.wake();
  };
  const set = (k, value) => {
    pause();
    if (clip.frames > 1) head.weights.fill(0, names.length); // a slider starts from rest, not from the clip's frame
    head.weights[k] = value;
    show();
  };
  const seek = (at) => {
    state.at = at;
    head.weights.fill(0);
    if (clip.frames > 1) {
      const frame = Math.min(at * clip.fps, clip.frames - 1), low = Math.floor(frame);
      head.weights[names.length + low] = 1 - (frame - low);
      if (low + 1 < clip.frames) head.weights[names.length + low + 1] = frame - low;
    } else { // without a clip: one expression after another
      const k = Math.min(Math.floor(at / 2), names.length - 1);
      head.weights[k] = 0.5 - 0.5 * Math.cos(Math.PI * (at - 2 * k));
    }
    show();
  };
  const pause = () => { state.playing = false; play.textContent = "Play"; play.setAttribute("aria-pressed", "false"); };
  play.addEventListener("click", () => {
    if (state.playing) return pause();
    Object.assign(state, { playing: true, last: 0 });
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
  });
  time.addEventListener("input", () => { pause(); seek(seconds * Number(time.value) / 1000); });
  find("rest").addEventListener("click", () => { pause(); state.at = 0; head.weights.fill(0); show(); });
  find("front").addEventListener("click", view.front);
  view.step = (now) => {
    if (!state.playing) return;
    const passed = state.last ? (now - state.last) / 1000 : 0;
    state.last = now;
    seek((state.at + Math.min(passed, 0.2)) % seconds);
  };
  if (!seconds) find("transport").hidden = true;
}

function addSlider(parent, name, changed) {
  const label = document.createElement("label"), value = document.createElement("output");
  const input = Object.assign(document.createElement("input"), { type: "range", min: "0", max: "1", step: "0.01", value: "0" });
  label.append(name, value, input);
  parent.append(label);
  const show = (weight) => { input.value = String(weight); value.textContent = `${Math.round(100 * weight)} %`; };
  input.addEventListener("input", () => changed(Number(input.value)));
  show(0);
  return { show };
}
