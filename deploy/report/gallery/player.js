"use strict";

// Plays one gallery. All cells show the same frame: the films of all cells are tiles of one video, which is the clock
// while it plays; without a film the clock is the browser's.
class Player {
  constructor(gallery) {
    this.gallery = gallery;
    this.choices = [...gallery.querySelectorAll(".episodes button")];
    this.shots = [...gallery.querySelectorAll(".shot")];
    this.playButton = gallery.querySelector(".play");
    this.scrub = gallery.querySelector(".scrub");
    this.speed = gallery.querySelector(".speed");
    this.clock = gallery.querySelector(".clock");
    this.films = new Map();
    this.picture = document.createElement("canvas").getContext("2d");
    this.frame = 0;
    this.playing = false;
    this.listen();
    gallery.querySelector(".transport").hidden = false;
    this.choose(this.choices[Math.min(1, this.choices.length - 1)]);
  }

  listen() {
    for (const choice of this.choices) choice.addEventListener("click", () => this.choose(choice));
    this.playButton.addEventListener("click", () => this.toggle());
    this.scrub.addEventListener("input", () => this.seek(Number(this.scrub.value)));
    this.speed.addEventListener("change", () => { if (this.video) this.video.playbackRate = this.rate; });
    this.gallery.addEventListener("keydown", (event) => this.press(event));
  }

  get rate() { return Number(this.speed.value); }
  get last() { return this.steps.length - 1; }

  // Shows another episode, as it ended: paths are whole then.
  choose(choice) {
    this.pause();
    for (const each of this.choices) each.setAttribute("aria-pressed", String(each === choice));
    const { episode, steps, fps, film } = choice.dataset;
    this.steps = JSON.parse(steps);
    this.fps = Number(fps);
    for (const shot of this.shots) shot.hidden = shot.dataset.episode !== episode;
    this.cells = this.shots.filter((shot) => !shot.hidden).map((shot) => new Cell(shot));
    this.scrub.max = this.last;
    this.video = film ? this.load(film) : null;
    this.gallery.classList.toggle("plays", this.video !== null);
    this.seek(this.last);
  }

  // Returns the video of a film; a browser that cannot play it keeps the strips, and the clock goes on without it.
  load(film) {
    if (!this.films.has(film)) {
      const video = document.createElement("video");
      video.muted = true;
      video.playsInline = true;
      video.preload = "auto";
      video.src = film.startsWith("data:") ? toBlobUrl(film) : film;
      video.addEventListener("seeked", () => this.draw());
      video.addEventListener("loadeddata", () => { if (video === this.video) this.seek(this.frame); });
      video.addEventListener("error", () => this.drop(film, video));
      this.films.set(film, video);
    }
    return this.films.get(film);
  }

  drop(film, video) {
    this.films.set(film, null);
    if (video !== this.video) return;
    this.video = null;
    this.gallery.classList.remove("plays");
  }

  press(event) {
    const own = event.target !== this.speed && !event.altKey && !event.ctrlKey && !event.metaKey;
    const jumps = { ArrowRight: this.frame + 1, ArrowLeft: this.frame - 1, Home: 0, End: this.last };
    if (event.key === " " && event.target === this.gallery) this.toggle();
    else if (own && event.key in jumps) this.seek(jumps[event.key]);
    else return;
    event.preventDefault();
  }

  toggle() { if (this.playing) this.pause(); else this.play(); }

  play() {
    if (this.frame >= this.last) this.seek(0);
    this.playing = true;
    this.mark();
    this.before = null;
    if (this.video) this.start(this.video);
    this.request = requestAnimationFrame((now) => this.tick(now));
  }

  // A browser may refuse to play. A pause ends this promise, too, when another episode may play already.
  start(video) {
    video.playbackRate = this.rate;
    video.play().catch((error) => { if (error.name === "NotAllowedError" && video === this.video) this.pause(); });
  }

  // Stops, and draws the frame that the clock names: a video goes on while a pause reaches it.
  pause() {
    const stops = this.playing && this.video;
    this.playing = false;
    cancelAnimationFrame(this.request);
    if (this.video) this.video.pause();
    this.mark();
    if (stops) this.seek(this.frame);
  }

  mark() {
    this.playButton.textContent = this.playing ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", this.playing ? "pause" : "play");
  }

  tick(now) {
    const passed = this.before === null ? 0 : (now - this.before) / 1000;
    this.before = now;
    this.frame = this.video ? this.video.currentTime * this.fps : this.frame + passed * this.fps * this.rate;
    const over = this.video ? this.video.ended : this.frame >= this.last;
    this.frame = over ? this.last : Math.min(this.frame, this.last);
    this.draw();
    if (over) this.pause();
    else this.request = requestAnimationFrame((later) => this.tick(later));
  }

  // Moves to a frame; a film draws when it is there.
  seek(frame) {
    this.frame = Math.min(Math.max(Math.floor(frame), 0), this.last);
    if (this.video && this.video.readyState) this.video.currentTime = (this.frame + 0.5) / this.fps;
    this.draw();
  }

  draw() {
    const frame = Math.floor(this.frame), step = this.steps[frame], last = String(this.steps[this.last]);
    const film = this.takePicture();
    for (const cell of this.cells) cell.draw(step, film);
    this.scrub.value = frame;
    this.clock.value = `step ${String(step).padStart(last.length, "\u2007")} of ${last}`; // always as wide
    this.gallery.dataset.frame = frame;
  }

  // Returns one frame of the film for all cells, as a video may go on from one cell's drawing to the next one's.
  takePicture() {
    const { video, picture } = this;
    if (!video || video.readyState < 2 || video.seeking) return null;
    if (picture.canvas.width !== video.videoWidth) picture.canvas.width = video.videoWidth;
    if (picture.canvas.height !== video.videoHeight) picture.canvas.height = video.videoHeight;
    picture.drawImage(video, 0, 0);
    return picture.canvas;
  }
}

// One episode of one cell: its bodies' paths as SVG, and its tile of the film.
class Cell {
  constructor(shot) {
    this.canvas = shot.querySelector("canvas");
    const path = shot.querySelector(".path");
    this.stride = path ? Number(path.dataset.stride) : 1;
    this.walks = path ? [...path.querySelectorAll(".walk")].map((walk) => new Walk(walk)) : [];
  }

  draw(step, film) {
    this.walks.forEach((walk) => walk.draw(Math.ceil(step / this.stride)));
    if (this.canvas && film) {
      const { width, height, dataset } = this.canvas;
      this.canvas.getContext("2d").drawImage(film, dataset.left, dataset.top, width, height, 0, 0, width, height);
    }
  }
}

// One body's path.
class Walk {
  constructor(walk) {
    this.body = walk.querySelector(".body");
    this.pieces = [...walk.querySelectorAll("polyline")];
    const runs = this.pieces.map((piece) => piece.getAttribute("points").split(" "));
    this.points = runs.flatMap((points, index) => (index ? points.slice(1) : points)).map((point) => point.split(","));
    this.ends = []; // index of each piece's last point
    runs.reduce((end, points) => (this.ends.push(end + points.length - 1), end + points.length - 1), 0);
  }

  draw(point) {
    const index = Math.min(point, this.points.length - 1);
    [["cx", 0], ["cy", 1]].forEach(([name, axis]) => this.body.setAttribute(name, this.points[index][axis]));
    this.pieces.forEach((piece, place) => piece.classList.toggle("later", this.ends[place] > index));
  }
}

function toBlobUrl(data) {
  const [head, body] = data.split(",");
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: head.slice(5, head.indexOf(";")) }));
}

document.querySelectorAll(".gallery").forEach((gallery) => new Player(gallery));
