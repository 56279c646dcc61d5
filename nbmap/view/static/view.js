// The live view of one run. It imports nothing and asks no network.
//
// The cell's output is static HTML (render.page). `initialize` puts a view into every element that
// carries the run's class, and takes it out again when the widget goes: what is saved, exported or
// reopened is always the HTML. Where outputs can't be reached from here (VS Code, Colab), the
// notebook displays the widget itself, and `render` puts the view there.
//
// The messages are those of nbmap/view/widget.py and are described in
// tests/decisions/008-what-a-notebook-keeps.md. All text is set as textContent, never as HTML.

const STATUSES = ["waiting", "running", "done", "failed", "cancelled"];
const GLYPHS = ["·", "▸", "✓", "✗", "–"];
const [WAITING, RUNNING, DONE, FAILED, CANCELLED] = STATUSES.keys();
const LOUDEST = [FAILED, RUNNING, CANCELLED]; // what a cell of several inputs shows first

const CELL_MAX = 20; // pixels of a cell of the grid, with its gap
const CELL_MIN = 2; // below that, a cell stands for several inputs
const GRID_HEIGHT = 220; // pixels
const GLYPH_FROM = 11; // pixels of a cell that has room for a glyph
const CURSOR_MIN = 8; // pixels of the frame around the cell that the keyboard is at
const RANGES = 10_000; // changes between two frames from which on the whole grid is painted

const POINTS = 1000; // of one curve of the plot
const PLOT_HEIGHT = 180; // pixels
const PLOT_LEFT = 64;
const PLOT_BOTTOM = 18;
const WIDE = 1000; // times the smallest number is the largest where the axis is logarithmic
const PLOT_REST = 8; // times as long as a drawing of the plot took there is none
// Told apart also by most who see colours otherwise, and seen on light and on dark ground.
const CURVE_COLOURS = ["#2f7fc1", "#b87a00", "#1a936f", "#c2649a", "#d1602b", "#8c6bb1", "#4d9aa8", "#808080"];

const OUTPUTS = 200; // lines of the newest outputs

const REST = 3000; // ms out of sight after which the kernel is asked to send nothing
const ACK = 250; // ms until a request goes to the control channel as well
const PATIENCE = 8000; // ms until a request counts as unanswered
const SPOKEN = 5000; // ms between two sentences for a screen reader
const GONE = ["restarting", "autorestarting", "terminating", "dead"]; // of a kernel's statuses

// --- small things ---------------------------------------------------------------------------

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const number = (n) => n.toLocaleString("en-US");

function randomId() {
  const words = crypto.getRandomValues(new Uint32Array(4));
  return Array.from(words, (word) => word.toString(16).padStart(8, "0")).join("");
}

// --- the run, as this page knows it -----------------------------------------------------------

class Run {
  constructor(model) {
    this.model = model;
    this.id = model.get("run");
    this.head = null; // counts and texts, null until the kernel has answered
    this.column = new Uint8Array(0); // a status for every input
    this.failures = [];
    this.outputs = []; // [number, input, text] of the newest
    this.outputsTold = 0;
    this.curves = new Curves();
    this.keys = 0; // messages that told all anew
    this.views = new Set();
    this.page = randomId();
    this.rests = false; // the kernel sends nothing, as nobody looks
    this.pending = new Map(); // requests without an answer, by id
    this.onMessage = (message, buffers) => this.receive(message, buffers ?? []);
    model.on("msg:custom", this.onMessage);
    this.onVisible = () => this.look();
    document.addEventListener("visibilitychange", this.onVisible);
    this.greet();
  }

  greet() {
    this.rests = false;
    this.request({ type: "hello", page: this.page }).catch(() => {}); // the answer is a "key" message
  }

  // A view is in sight again, or none may be any more.
  look() {
    const seen = !document.hidden && [...this.views].some((view) => view.seen !== false);
    clearTimeout(this.leaving);
    if (seen && this.rests) this.greet();
    else if (!seen && !this.rests && this.head) {
      this.leaving = setTimeout(() => {
        this.rests = true;
        this.request({ type: "rest", page: this.page }).catch(() => {});
      }, REST);
    }
  }

  close() {
    clearTimeout(this.leaving);
    document.removeEventListener("visibilitychange", this.onVisible);
    this.model.off("msg:custom", this.onMessage);
  }

  receive(message, buffers) {
    if (message.type === "key") {
      this.outputs = [];
      this.keys++;
      this.failures = message.failures; // those that were told before and the new ones
      this.column = new Uint8Array(0);
      this.take(message, bytesOf(buffers[0]), true);
    } else if (message.type === "delta" && this.head) {
      this.failures.push(...message.failures);
      this.take(message, bytesOf(buffers[0]), false);
    } else if (message.type === "answer") {
      this.settle(message.rid, message.result);
    }
  }

  take({ head, ranges: count, outputs, plot }, bytes, isNew) {
    this.head = head;
    if (plot) this.curves.take(plot);
    for (const [index, text] of outputs) this.outputs.push([++this.outputsTold, index, text]);
    this.outputs.splice(0, this.outputs.length - OUTPUTS);
    const whole = isNew || count === null || head.cells !== this.column.length;
    if (whole) {
      const column = new Uint8Array(head.cells);
      column.set((count === null ? bytes : this.column).subarray(0, head.cells));
      this.column = column;
    }
    const ranges = count === null ? [] : rangesOf(count, bytes);
    for (const [start, stop, status] of ranges) this.column.fill(status, start, stop);
    this.tell((view) => (whole ? view.redraw() : view.update(ranges)));
  }

  tell(what) {
    for (const view of this.views) what(view);
  }

  get running() {
    return this.head !== null && this.head.status === "running";
  }

  // A kernel that runs a cell may not read comm messages before its end, but it always reads the
  // control channel. So a request goes there as well when nobody has answered; it carries an id,
  // and the kernel acts on it once.
  request(body) {
    const rid = randomId();
    const sent = { ...body, rid };
    return new Promise((resolve, reject) => {
      this.pending.set(rid, resolve);
      try {
        this.model.send(sent);
      } catch {
        // a comm that is closed: the control channel may still be there
      }
      setTimeout(() => this.pending.has(rid) && this.control(sent), ACK);
      setTimeout(() => this.pending.delete(rid) && reject(new Error("no answer")), PATIENCE);
    });
  }

  control(body) {
    const kernel = this.model.widget_manager?.kernel;
    if (!kernel?.sendControlMessage) return;
    const header = {
      msg_id: randomId(),
      msg_type: "nbmap_request",
      session: kernel.clientId,
      username: kernel.username ?? "",
      date: new Date().toISOString(),
      version: "5.3",
    };
    const content = { run: this.id, body };
    try {
      const message = { header, parent_header: {}, metadata: {}, content, channel: "control", buffers: [] };
      const future = kernel.sendControlMessage(message, true, true);
      future.onReply = (reply) => this.settle(body.rid, reply.content?.result);
      future.done.catch(() => {});
    } catch {
      // a kernel that is going away
    }
  }

  settle(rid, result) {
    const resolve = this.pending.get(rid);
    if (resolve && result) {
      this.pending.delete(rid);
      resolve(result);
    }
  }
}

function bytesOf(buffer) {
  if (!buffer) return new Uint8Array(0);
  return new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
}

// Return [start, stop, status] of `count` ranges: all starts, all lengths (u32), all statuses (u8).
function rangesOf(count, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const ranges = [];
  for (let k = 0; k < count; k++) {
    const start = view.getUint32(4 * k, true);
    const length = view.getUint32(4 * (count + k), true);
    ranges.push([start, start + length, view.getUint8(8 * count + k)]);
  }
  return ranges;
}

// --- the grid: a cell for every input, or for several where there are too many -----------------

class Grid {
  constructor(run, onPick) {
    this.run = run;
    this.onPick = onPick;
    this.cursor = 0; // the input that the keyboard is at
    this.canvas = element("canvas", "nbmap-grid");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "listbox");
    this.option = element("span");
    this.option.id = `nbmap-${randomId()}`;
    this.option.setAttribute("role", "option");
    this.option.setAttribute("aria-selected", "true");
    this.canvas.setAttribute("aria-activedescendant", this.option.id);
    this.canvas.append(this.option);
    this.tip = element("div", "nbmap-note", "\u00a0");
    this.context = this.canvas.getContext("2d");
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => setText(this.tip, "\u00a0"));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.move(this.cursor));
    this.canvas.addEventListener("blur", () => this.paintAround(this.cursorBin));
    this.colors = [];
    this.width = 0;
    this.bins = 0;
  }

  // Choose the size of a cell so that all fit, and make several inputs share one where none does.
  layout(width) {
    const n = this.run.column.length;
    this.width = width;
    const fits = (size) => Math.ceil(n / Math.max(1, Math.floor(width / size))) * size <= GRID_HEIGHT;
    let size = CELL_MAX;
    while (size > CELL_MIN && !fits(size)) size--;
    this.size = size;
    this.columns = Math.max(1, Math.floor(width / size));
    const most = this.columns * Math.floor(GRID_HEIGHT / size);
    this.per = Math.max(1, Math.ceil(n / most));
    this.bins = Math.ceil(n / this.per);
    const rows = Math.ceil(this.bins / this.columns);
    const scale = size < GLYPH_FROM ? 1 : window.devicePixelRatio || 1;
    const pixels = [Math.min(this.columns, Math.max(1, this.bins)) * size, Math.max(1, rows) * size];
    [this.canvas.width, this.canvas.height] = pixels.map((p) => Math.round(p * scale));
    [this.canvas.style.width, this.canvas.style.height] = pixels.map((p) => `${p}px`);
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.canvas.hidden = n === 0;
    this.canvas.setAttribute("aria-label", `${number(n)} inputs; arrow keys move, Enter shows one`);
    this.option.setAttribute("aria-setsize", String(n));
    this.cursor = Math.min(this.cursor, Math.max(0, n - 1));
    if (n) setText(this.option, this.describe(this.cursorBin));
  }

  readColors() {
    const style = getComputedStyle(this.canvas);
    this.colors = STATUSES.map((name) => style.getPropertyValue(`--nbmap-${name}`).trim());
    this.ink = style.getPropertyValue("--nbmap-on-status").trim();
    this.edge = style.color;
  }

  paint(ranges) {
    if (!this.bins) return;
    if (ranges === undefined) {
      this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      for (let bin = 0; bin < this.bins; bin++) this.paintBin(bin);
    } else {
      for (const [start, stop] of ranges) {
        const last = Math.floor((stop - 1) / this.per);
        for (let bin = Math.floor(start / this.per); bin <= last; bin++) this.paintBin(bin);
      }
    }
    if (document.activeElement === this.canvas) this.paintCursor();
  }

  paintBin(bin) {
    const { context, size } = this;
    const [x, y] = this.place(bin);
    const gap = size >= 8 ? 2 : size > CELL_MIN ? 1 : 0;
    const status = this.statusOf(bin);
    context.clearRect(x, y, size, size);
    if (status === WAITING && size >= 8) {
      context.strokeStyle = this.colors[WAITING];
      context.strokeRect(x + 0.5, y + 0.5, size - gap - 1, size - gap - 1);
    } else {
      context.fillStyle = this.colors[status];
      context.fillRect(x, y, size - gap, size - gap);
    }
    if (size < GLYPH_FROM) return;
    context.font = `bold ${size - 7}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = status === WAITING ? this.edge : this.ink;
    context.fillText(GLYPHS[status], x + (size - gap) / 2, y + (size - gap) / 2 + 0.5);
  }

  paintCursor() {
    const [x, y] = this.place(this.cursorBin);
    const around = Math.max(0, (CURSOR_MIN - this.size) / 2); // where cells are tiny, beyond it
    const side = this.size - 2 + 2 * around;
    this.context.strokeStyle = this.edge;
    this.context.lineWidth = 2;
    this.context.strokeRect(x + 1 - around, y + 1 - around, side, side);
    this.context.lineWidth = 1;
  }

  // Paint a cell anew, with those that the frame of the cursor reaches.
  paintAround(bin) {
    const { columns, size } = this;
    const reach = Math.ceil(CURSOR_MIN / size);
    const [x, y] = this.place(bin);
    const side = (2 * reach + 1) * size;
    this.context.clearRect(x - reach * size, y - reach * size, side, side);
    const first = Math.max(-reach, -(bin % columns));
    const last = Math.min(reach, columns - 1 - (bin % columns));
    for (let down = -reach; down <= reach; down++) {
      for (let at = bin + down * columns + first; at <= bin + down * columns + last; at++) {
        if (at >= 0 && at < this.bins) this.paintBin(at);
      }
    }
  }

  get cursorBin() {
    return Math.floor(this.cursor / this.per);
  }

  place(bin) {
    return [(bin % this.columns) * this.size, Math.floor(bin / this.columns) * this.size];
  }

  inputsOf(bin) {
    return [bin * this.per, Math.min(this.run.column.length, (bin + 1) * this.per)];
  }

  countsOf(bin) {
    const [start, stop] = this.inputsOf(bin);
    const counts = new Array(STATUSES.length).fill(0);
    for (let i = start; i < stop; i++) counts[this.run.column[i]]++;
    return counts;
  }

  statusOf(bin) {
    if (this.per === 1) return this.run.column[bin];
    const counts = this.countsOf(bin);
    const loud = LOUDEST.find((status) => counts[status] > 0);
    return loud ?? (counts[DONE] > counts[WAITING] ? DONE : WAITING);
  }

  describe(bin) {
    const [start, stop] = this.inputsOf(bin);
    if (stop - start === 1) return `input ${number(start)}: ${STATUSES[this.run.column[start]]}`;
    const parts = this.countsOf(bin).map((count, s) => (count ? `${number(count)} ${STATUSES[s]}` : ""));
    return `inputs ${number(start)}–${number(stop - 1)}: ${parts.filter(Boolean).join(", ")}`;
  }

  // The input of a cell that one wants to see most.
  pickOf(bin) {
    const [start, stop] = this.inputsOf(bin);
    for (const status of LOUDEST) {
      const at = this.run.column.indexOf(status, start);
      if (at >= 0 && at < stop) return at;
    }
    return start;
  }

  binAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.size);
    const bin = Math.floor((event.clientY - box.top) / this.size) * this.columns + column;
    return column >= 0 && column < this.columns && bin >= 0 && bin < this.bins ? bin : null;
  }

  click(event) {
    const bin = this.binAt(event);
    if (bin === null) return;
    this.move(this.pickOf(bin));
    this.onPick(this.cursor);
  }

  point(event) {
    const bin = this.binAt(event);
    setText(this.tip, bin === null ? "\u00a0" : this.describe(bin));
  }

  move(index) {
    const before = this.cursorBin;
    this.cursor = Math.max(0, Math.min(this.run.column.length - 1, index));
    const told = this.describe(this.cursorBin);
    setText(this.option, told);
    setText(this.tip, told);
    this.option.setAttribute("aria-posinset", String(this.cursor + 1));
    this.paintAround(before);
    if (document.activeElement === this.canvas) this.paintCursor();
  }

  key(event) {
    const row = this.columns * this.per;
    const steps = { ArrowRight: this.per, ArrowLeft: -this.per, ArrowDown: row, ArrowUp: -row };
    if (event.key in steps) this.move(this.cursor + steps[event.key]);
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(this.run.column.length - 1);
    else if (event.key === "f" || event.key === "F") this.moveToFailure();
    else if (event.key === "Enter" || event.key === " ")
      this.onPick(this.pickOf(this.cursorBin));
    else return;
    event.preventDefault();
  }

  moveToFailure() {
    const column = this.run.column;
    const after = column.indexOf(FAILED, this.cursor + 1);
    const next = after >= 0 ? after : column.indexOf(FAILED);
    if (next >= 0) this.move(next);
  }
}

// --- the plot: a curve for each input of the numbers that it yields, or a dot of what it returns ---

class Curves {
  constructor() {
    this.keys = [];
    this.shown = 0; // the key that is shown first
    this.byInput = false; // dots, x being the input
    this.of = []; // by key: input -> {x, y}
    this.version = 0;
  }

  take({ keys, shown, by_input: byInput, curves, points }) {
    Object.assign(this, { keys, shown, byInput });
    if (curves) {
      this.of = [];
      for (const [key, index, x, y] of curves) this.curve(key, index, { x, y });
    }
    for (const [key, index, x, y] of points) {
      const curve = this.curve(key, index);
      curve.x.push(x);
      curve.y.push(y);
      if (curve.x.length > POINTS) {
        curve.x = curve.x.filter((_, at) => at % 2 === 0);
        curve.y = curve.y.filter((_, at) => at % 2 === 0);
      }
    }
    this.version++;
  }

  curve(key, index, made) {
    this.of[key] ??= new Map();
    if (made || !this.of[key].has(index)) this.of[key].set(index, made ?? { x: [], y: [] });
    return this.of[key].get(index);
  }
}

class Plot {
  constructor(run) {
    this.run = run;
    this.root = element("details", "nbmap-plot");
    this.root.open = true;
    this.root.hidden = true;
    this.key = element("select");
    this.key.setAttribute("aria-label", "number that is shown");
    this.log = element("input");
    this.log.type = "checkbox";
    const log = element("label", "nbmap-note");
    log.append(this.log, " log");
    const choices = element("span", "nbmap-choices");
    choices.append(this.key, log);
    this.canvas = element("canvas", "nbmap-curves");
    this.canvas.setAttribute("role", "img");
    this.tip = element("div", "nbmap-note", "\u00a0");
    this.root.append(element("summary", "", "numbers"), choices, this.canvas, this.tip);
    this.context = this.canvas.getContext("2d");
    this.chosen = null; // until somebody has chosen, the kernel does
    this.near = null; // the input under the pointer
    this.opened = false; // whether anything was shown
    this.drawn = null; // what was drawn last
    this.restsUntil = 0;
    this.key.addEventListener("change", () => this.choose());
    this.logChosen = false;
    this.log.addEventListener("change", () => {
      this.logChosen = true;
      this.again();
    });
    this.root.addEventListener("toggle", () => this.again());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
  }

  choose() {
    this.chosen = Number(this.key.value);
    this.again();
  }

  again() {
    this.drawn = null;
    this.restsUntil = 0;
    this.draw(this.width ?? 0);
  }

  get at() {
    return this.chosen ?? this.run.curves.shown;
  }

  draw(width) {
    const { curves } = this.run;
    const mine = curves.of[this.at];
    this.root.hidden = !mine || ![...mine.values()].some((curve) => curve.x.length > 1);
    this.width = width;
    if (!this.opened && !this.root.hidden) {
      // What functions return is less than what generators tell while they run.
      this.root.open = !curves.byInput;
      this.opened = true;
    }
    if (this.root.hidden || !this.root.open || width < PLOT_LEFT + 40) return;
    const state = `${curves.version} ${width} ${this.at} ${this.near}`;
    const began = performance.now();
    if (state === this.drawn) return;
    if (began < this.restsUntil) {
      this.later ??= setTimeout(() => {
        this.later = undefined;
        this.draw(this.width);
      }, this.restsUntil - began);
      return;
    }
    this.drawn = state;
    this.drawChoices(curves);
    if (!this.logChosen) this.log.checked = isWide(mine);
    this.scale(mine);
    this.drawAxes(width, mine);
    this.drawCurves(mine);
    this.restsUntil = performance.now() + PLOT_REST * (performance.now() - began);
  }

  drawChoices(curves) {
    if (this.key.options.length === curves.keys.length) return;
    this.key.replaceChildren(...curves.keys.map((name, at) => new Option(name, String(at))));
    this.key.value = String(this.at);
    this.key.hidden = curves.keys.length < 2;
  }

  // Numbers that a logarithm has; all, where none is asked for.
  has(y) {
    return !this.log.checked || y > 0;
  }

  value(y) {
    return this.log.checked ? Math.log10(y) : y / 2; // of halves, whose difference is a number
  }

  scale(mine) {
    let [right, low, high] = [1, Infinity, -Infinity];
    for (const { x, y } of mine.values()) {
      for (const one of x) if (one > right) right = one;
      for (const one of y) {
        if (!this.has(one)) continue;
        if (one < low) low = one;
        if (one > high) high = one;
      }
    }
    Object.assign(this, { right, low, high });
  }

  place(x, y) {
    const across = PLOT_LEFT + ((this.width - PLOT_LEFT - 8) * x) / this.right;
    const room = this.value(this.high) - this.value(this.low) || 1;
    const down = (PLOT_HEIGHT - PLOT_BOTTOM - 12) * ((this.value(this.high) - this.value(y)) / room);
    return [across, 8 + down];
  }

  drawAxes(width, mine) {
    const { canvas, context } = this;
    const scale = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(PLOT_HEIGHT * scale)];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${PLOT_HEIGHT}px`];
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, PLOT_HEIGHT);
    const style = getComputedStyle(this.tip);
    const bottom = PLOT_HEIGHT - PLOT_BOTTOM;
    context.strokeStyle = context.fillStyle = style.color;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(PLOT_LEFT - 0.5, 4);
    context.lineTo(PLOT_LEFT - 0.5, bottom + 0.5);
    context.lineTo(width - 8, bottom + 0.5);
    context.stroke();
    context.font = `11px ${style.fontFamily}`;
    const name = this.run.curves.keys[this.at];
    const texts = [
      ["right", PLOT_LEFT - 6, 14, short(this.high)],
      ["right", PLOT_LEFT - 6, bottom, short(this.low)],
      ["left", PLOT_LEFT, PLOT_HEIGHT - 4, `${name}, by ${this.run.curves.byInput ? "input" : "output"}`],
      ["right", width - 8, PLOT_HEIGHT - 4, number(this.right)],
    ];
    for (const [align, x, y, text] of texts) {
      context.textAlign = align;
      context.textBaseline = "alphabetic";
      if (text !== "") context.fillText(text, x, y);
    }
    const inputs = `${number(mine.size)} input${mine.size === 1 ? "" : "s"}`;
    const what = this.run.curves.byInput ? `${name}, input by input` : `${name} of ${inputs}, output by output`;
    canvas.setAttribute("aria-label", `${what}, from ${short(this.low)} to ${short(this.high)}`);
  }

  drawCurves(mine) {
    const { context } = this;
    if (this.run.curves.byInput) {
      for (const curve of mine.values()) this.drawDots(curve);
      return;
    }
    context.save();
    context.lineJoin = "round";
    context.globalAlpha = this.near === null ? Math.max(0.25, Math.min(1, 24 / mine.size)) : 0.25;
    context.lineWidth = 1.3;
    let n = 0;
    for (const [index, curve] of mine) this.drawCurve(curve, index, n++);
    if (mine.has(this.near)) {
      context.globalAlpha = 1;
      context.lineWidth = 2.5;
      this.drawCurve(mine.get(this.near), this.near, [...mine.keys()].indexOf(this.near));
    }
    context.restore();
  }

  drawCurve({ x, y }, index, n) {
    const { context } = this;
    context.strokeStyle = CURVE_COLOURS[n % CURVE_COLOURS.length];
    context.beginPath();
    for (let at = 0; at < x.length; at++) if (this.has(y[at])) context.lineTo(...this.place(x[at], y[at]));
    context.stroke();
  }

  drawDots({ x, y }) {
    const { context } = this;
    for (let at = 0; at < x.length; at++) {
      if (!this.has(y[at])) continue;
      context.fillStyle = CURVE_COLOURS[x[at] === this.near ? 1 : 0];
      context.beginPath();
      context.arc(...this.place(x[at], y[at]), x[at] === this.near ? 4 : 2.5, 0, 7);
      context.fill();
    }
  }

  // Name the curve, or the dot, that is nearest to the pointer.
  point(event) {
    const mine = this.run.curves.of[this.at];
    let [near, text, best] = [null, "\u00a0", 24];
    if (event && mine && this.high !== undefined) {
      const box = this.canvas.getBoundingClientRect();
      const [across, down] = [event.clientX - box.left, event.clientY - box.top];
      const x = ((across - PLOT_LEFT) * this.right) / (this.width - PLOT_LEFT - 8);
      for (const [index, curve] of mine) {
        const { byInput } = this.run.curves;
        for (const at of byInput ? curve.x.keys() : [nearest(curve.x, x)]) {
          if (at < 0 || !this.has(curve.y[at])) continue;
          const [left, top] = this.place(curve.x[at], curve.y[at]);
          const far = Math.abs(top - down) + Math.abs(left - across) / (byInput ? 1 : 4);
          if (far >= best) continue;
          const name = this.run.curves.keys[this.at];
          [near, best] = [byInput ? curve.x[at] : index, far];
          text = `input ${number(near)}: ${name} ${short(curve.y[at])}`;
          if (!byInput) text += ` at output ${number(curve.x[at])}`;
        }
      }
    }
    setText(this.tip, text);
    if (near === this.near) return;
    this.near = near;
    this.draw(this.width);
  }
}

// Numbers of which a straight axis would show the largest only; as in nbmap/view/picture.py.
function isWide(mine) {
  let [low, high] = [Infinity, -Infinity];
  for (const { y } of mine.values()) for (const one of y) [low, high] = [Math.min(low, one), Math.max(high, one)];
  return low > 0 && high / low > WIDE;
}

// The place of the number that is nearest to x, of numbers that grow.
function nearest(numbers, x) {
  let [low, high] = [0, numbers.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - numbers[low - 1] < numbers[low] - x ? low - 1 : low;
}

function short(y) {
  return Number.isFinite(y) ? String(Number(y.toPrecision(4))) : "";
}

// --- the view -------------------------------------------------------------------------------

class View {
  constructor(run, onTheme) {
    this.run = run;
    this.root = element("section", "nbmap");
    this.root.setAttribute("aria-label", `nbmap: ${run.model.get("name")}`);
    this.line = element("span", "nbmap-line");
    this.cancel = element("button", "nbmap-cancel", "Cancel");
    this.cancel.type = "button";
    this.cancel.addEventListener("click", () => this.cancelRun());
    this.retry = element("button", "nbmap-retry", "Retry");
    this.retry.type = "button";
    this.retry.title = "Run again, below, what has failed, was cancelled or never ran";
    this.retry.addEventListener("click", () => this.retryRun());
    const top = element("div", "nbmap-top");
    const name = element("span", "nbmap-name", run.model.get("name"));
    top.append(name, this.line, this.cancel, this.retry);
    this.note = element("div", "nbmap-note nbmap-remark");
    this.gpus = element("div", "nbmap-note nbmap-remark nbmap-gpus");
    this.bar = this.makeBar();
    this.legend = this.makeLegend();
    this.grid = new Grid(run, (index) => this.showDetail(index));
    this.detail = element("div", "nbmap-detail");
    this.detail.hidden = true;
    this.failures = this.makeFailures();
    this.plot = new Plot(run);
    this.outputs = this.makeOutputs();
    this.spoken = element("div", "nbmap-spoken");
    this.spoken.setAttribute("role", "status");
    const parts = [top, this.note, this.gpus, this.bar, this.legend, this.grid.canvas, this.grid.tip];
    const { plot, outputs } = this;
    this.root.append(...parts, this.detail, plot.root, this.failures, outputs, this.spoken);
    this.spokenAt = 0;
    this.asked = 0; // how often an input was asked for
    this.rowsMade = 0;
    this.frame = 0;
    this.ranges = []; // what has changed since the last frame; null for everything
    this.root.addEventListener("keydown", keepKey);
    this.focused = null; // what has the focus, or had it when the view was taken out of the page
    this.root.addEventListener("focusin", (event) => (this.focused = event.target));
    this.root.addEventListener("focusout", () => {
      queueMicrotask(() => this.root.isConnected && !this.root.matches(":focus-within") && (this.focused = null));
    });
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.root);
    this.seen = true; // whether any of it is in sight
    this.sight = new IntersectionObserver((entries) => {
      this.seen = entries.at(-1).isIntersecting;
      if (this.seen) this.redraw();
      run.look();
    });
    this.sight.observe(this.root);
    this.themed = new MutationObserver(() => this.redraw());
    const attributeFilter = ["class", "data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"];
    this.themed.observe(document.body, { attributes: true, attributeFilter });
    run.views.add(this);
    this.redraw();
  }

  // A view that is moved in the page keeps the focus.
  moveTo(place) {
    const { focused } = this;
    place.append(this.root);
    focused?.focus({ preventScroll: true });
    this.redraw();
  }

  close() {
    this.run.views.delete(this);
    this.resized.disconnect();
    this.sight.disconnect();
    this.themed.disconnect();
    cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  makeBar() {
    const bar = element("div", "nbmap-bar");
    bar.setAttribute("role", "progressbar");
    bar.setAttribute("aria-label", "inputs that have ended");
    bar.setAttribute("aria-valuemin", "0");
    this.segments = [DONE, FAILED, CANCELLED, RUNNING].map((status) => {
      const segment = element("i", `nbmap-${STATUSES[status]}`);
      segment.dataset.status = STATUSES[status];
      bar.append(segment);
      return segment;
    });
    return bar;
  }

  makeLegend() {
    const legend = element("ul", "nbmap-legend");
    this.counts = STATUSES.map((name, status) => {
      const swatch = element("span", `nbmap-swatch nbmap-${name}`, GLYPHS[status]);
      swatch.setAttribute("aria-hidden", "true");
      const count = element("b", "", "0");
      count.dataset.status = name;
      const entry = element("li");
      entry.append(swatch, count, ` ${name}`);
      legend.append(entry);
      return count;
    });
    return legend;
  }

  makeFailures() {
    const box = element("details", "nbmap-failures");
    box.open = true;
    this.failuresTitle = element("summary");
    const table = element("table");
    const head = element("tr");
    for (const name of ["#", "input", "exception", "message"]) {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const thead = element("thead");
    thead.append(head);
    this.rows = element("tbody");
    table.append(thead, this.rows);
    const scroll = element("div", "nbmap-scroll");
    scroll.append(table);
    box.append(this.failuresTitle, scroll);
    return box;
  }

  makeOutputs() {
    const box = element("details", "nbmap-outputs");
    box.append(element("summary", "", "newest outputs"));
    this.lines = element("ol", "nbmap-lines");
    this.lines.tabIndex = 0;
    this.lines.setAttribute("aria-label", "the newest outputs, by input");
    box.append(this.lines);
    box.addEventListener("toggle", () => this.redraw());
    this.linesDrawn = 0; // the number of the last one
    return box;
  }

  // -- changes; they are drawn together, once a frame

  redraw() {
    this.ranges = null;
    this.plot.drawn = null; // the theme may be another
    this.schedule();
  }

  update(ranges) {
    // A page that is hidden draws nothing, and must not remember every change until it does.
    if (this.ranges !== null) this.ranges = this.ranges.concat(ranges);
    if (this.ranges?.length > RANGES) this.ranges = null;
    this.schedule();
  }

  resize() {
    if (Math.abs(this.root.clientWidth - (this.grid.width ?? 0) - 18) > 1) this.redraw();
  }

  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const head = this.run.head;
    if (!head) return;
    setText(this.line, head.line);
    setText(this.note, head.note);
    setText(this.gpus, head.gpus.join("\n"));
    this.drawCounts(head);
    this.drawCancel(head);
    if (this.seen) {
      this.drawGrid();
      this.plot.draw(Math.max(60, this.root.clientWidth - 18));
    } else this.ranges = null; // drawn when it comes in sight
    this.drawFailures(head);
    this.drawOutputs(head);
    this.makePlaces(head.below);
    this.speak(head);
  }

  // Where the page was loaded again it hears no more of outputs that are brought up to date, so the
  // runs that ran this one again have no place in it.
  makePlaces(ids) {
    const mine = this.root.closest(".nbmap-mount");
    for (const id of mine ? ids : []) {
      if (!document.querySelector(`.nbmap-mount-${id}`)) {
        mine.parentElement.append(element("div", `nbmap-mount nbmap-mount-${id}`));
      }
    }
  }

  drawCounts(head) {
    const total = Math.max(1, head.total ?? head.counts.reduce((a, b) => a + b, 0));
    const ended = head.counts[DONE] + head.counts[FAILED] + head.counts[CANCELLED];
    this.counts.forEach((node, status) => setText(node, number(head.counts[status])));
    for (const segment of this.segments) {
      const count = head.counts[STATUSES.indexOf(segment.dataset.status)];
      segment.style.width = `${(100 * count) / total}%`;
      // One failure of a million is seen, too.
      segment.style.minWidth = count && segment.dataset.status === STATUSES[FAILED] ? "4px" : "";
    }
    this.bar.setAttribute("aria-valuemax", String(total));
    this.bar.setAttribute("aria-valuenow", String(ended));
    this.bar.setAttribute("aria-valuetext", head.line);
  }

  drawCancel(head) {
    const over = head.status !== "running";
    if (over && this.focused === this.cancel) {
      this.focused = this.grid.canvas;
      this.focused.focus({ preventScroll: true });
    }
    this.cancel.hidden = over;
    this.retry.hidden = !over || !head.retry;
  }

  drawGrid() {
    if (this.ranges === null) {
      const width = Math.max(60, this.root.clientWidth - 18);
      this.grid.readColors();
      this.grid.layout(width);
      this.grid.paint();
    } else {
      this.grid.paint(this.ranges);
    }
    this.ranges = [];
  }

  drawFailures(head) {
    const known = this.run.failures;
    const total = head.counts[FAILED];
    this.failures.hidden = known.length === 0;
    const rest = known.length < total ? ` – the first ${number(known.length)} are shown` : "";
    setText(this.failuresTitle, `${number(total)} failed${rest}`);
    while (this.rowsMade < known.length) this.rows.append(...failureRows(known[this.rowsMade++]));
  }

  drawOutputs(head) {
    const { outputs } = this.run;
    const { lines } = this;
    if (this.keyDrawn !== this.run.keys) {
      lines.replaceChildren();
      this.linesDrawn = 0;
      // What functions return is less than what generators tell while they run.
      if (this.keyDrawn === undefined) this.outputs.open = head.streams;
      this.keyDrawn = this.run.keys;
    }
    this.outputs.hidden = outputs.length === 0;
    if (!this.outputs.open) return;
    // Who reads further up is left there.
    const follows = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 4;
    for (const [n, index, text] of outputs) {
      if (n <= this.linesDrawn) continue;
      const line = element("li");
      line.append(element("span", "nbmap-note", number(index)), ` ${text}`);
      lines.append(line);
      this.linesDrawn = n;
    }
    while (lines.childElementCount > OUTPUTS) lines.firstElementChild.remove();
    if (follows) lines.scrollTop = lines.scrollHeight;
  }

  speak(head) {
    const now = performance.now();
    if (now - this.spokenAt < SPOKEN && head.status === "running") return;
    this.spokenAt = now;
    setText(this.spoken, `${this.run.model.get("name")}: ${head.line}`);
  }

  // -- what the user asks for

  async cancelRun() {
    // Not disabled, since that would take the focus away; asked twice, the kernel does it once.
    this.cancel.setAttribute("aria-disabled", "true");
    setText(this.cancel, "Cancelling…");
    try {
      await this.run.request({ type: "cancel" });
    } catch {
      this.cancel.removeAttribute("aria-disabled");
      setText(this.cancel, "Cancel");
      const hint = "The kernel did not answer. The notebook's Interrupt button (■) also cancels this run.";
      setText(this.note, hint);
    }
  }

  async retryRun() {
    if (this.retry.getAttribute("aria-disabled")) return;
    this.retry.setAttribute("aria-disabled", "true");
    setText(this.retry, "Retrying…");
    try {
      await this.run.request({ type: "retry" });
    } catch {
      setText(this.note, "The kernel did not answer. run.retry() in a cell does the same.");
    }
    this.retry.removeAttribute("aria-disabled");
    setText(this.retry, "Retry");
  }

  // The button that cancels one input, while it has not ended.
  cancelOne(index) {
    if (this.run.column[index] > RUNNING || !this.run.running) return [];
    const button = element("button", "nbmap-small", "Cancel this input");
    button.type = "button";
    button.addEventListener("click", async () => {
      button.setAttribute("aria-disabled", "true");
      setText(button, "Cancelling…");
      await this.run.request({ type: "cancel", index }).catch(() => {});
      button.remove();
    });
    return [button];
  }

  async showDetail(index) {
    const asked = ++this.asked;
    this.detail.hidden = false;
    const status = STATUSES[this.run.column[index]];
    const title = element("b", "", `input ${number(index)}: ${status}`);
    this.detail.replaceChildren(title);
    try {
      const told = await this.run.request({ type: "detail", index });
      if (asked !== this.asked) return; // another input was asked for meanwhile
      const input = told.input ? [element("span", "nbmap-note", told.input)] : [];
      const printed = element("pre", "nbmap-printed", told.printed || "(it has printed nothing)");
      printed.setAttribute("aria-label", `what input ${number(index)} has printed`);
      printed.tabIndex = 0;
      const traceback = told.traceback ? [element("pre", "nbmap-traceback", told.traceback)] : [];
      this.detail.replaceChildren(title, ...input, ...this.cancelOne(index), printed, ...traceback);
    } catch {
      if (asked !== this.asked) return;
      this.detail.append(element("span", "nbmap-note", "The kernel did not answer."));
    }
  }
}

// What is typed here is for the view: JupyterLab's command mode would add or delete cells.
function keepKey(event) {
  if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
}

// A failure is a row; its traceback, a row under it across the whole table, opens with the message.
function failureRows(failure) {
  const row = element("tr");
  row.append(element("td", "", number(failure.index)), element("td", "", failure.input));
  row.append(element("td", "", failure.type));
  const message = element("td");
  row.append(message);
  if (!failure.traceback) {
    message.textContent = failure.message;
    return [row];
  }
  const details = element("details");
  details.append(element("summary", "", failure.message));
  message.append(details);
  const text = element("pre", "nbmap-traceback");
  const wide = element("td");
  wide.colSpan = 4;
  const about = element("div", "nbmap-about");
  const replay = element("code", "", failure.replay);
  replay.title = "Runs this input in the kernel itself, for %debug";
  about.append(element("span", "nbmap-note", failure.about), replay);
  about.append(copyButton("Copy traceback", failure.traceback));
  wide.append(about, text);
  const under = element("tr");
  under.hidden = true;
  under.append(wide);
  details.addEventListener("toggle", () => {
    text.textContent = failure.traceback;
    under.hidden = !details.open;
  });
  return [row, under];
}

function copyButton(label, text) {
  const button = element("button", "nbmap-small", label);
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      setText(button, "Copied");
    } catch {
      setText(button, "Select the text to copy it"); // a page without the right to the clipboard
    }
    setTimeout(() => setText(button, label), 2000);
  });
  return button;
}

// --- into the page ----------------------------------------------------------------------------

// Put a view into every element of the page that is the run's, now and later.
function mountAll(run) {
  const mounted = new Map(); // element -> view
  const selector = `.nbmap-mount-${run.id}`;
  function mount(place) {
    const view = takeAway() ?? new View(run);
    place.classList.add("nbmap-mounted"); // which hides the HTML in it
    mounted.set(place, view);
    view.moveTo(place);
  }
  // An output that is brought up to date is a new element: the view moves there as it is.
  function takeAway() {
    for (const [old, view] of mounted) {
      if (isGone(old)) {
        mounted.delete(old);
        return view;
      }
    }
    return undefined;
  }
  function scan() {
    for (const place of document.querySelectorAll(selector)) if (!mounted.has(place)) mount(place);
    for (const [place, view] of mounted) {
      if (isGone(place)) {
        view.close();
        mounted.delete(place);
      }
    }
  }
  let due = 0;
  const observer = new MutationObserver(() => {
    due ||= requestAnimationFrame(() => {
      due = 0;
      scan();
    });
  });
  // Before the kernel has answered there is nothing to show, and the HTML tells more.
  const waiting = {
    redraw() {
      run.views.delete(waiting);
      observer.observe(document.body, { childList: true, subtree: true });
      scan();
    },
  };
  run.views.add(waiting);
  // What a kernel that is gone did not tell nobody knows: the HTML says when it was true.
  const { kernel } = run.model.widget_manager ?? {};
  const onStatus = (_, status) => GONE.includes(status) && unmount();
  kernel?.statusChanged?.connect(onStatus);
  function unmount() {
    kernel?.statusChanged?.disconnect(onStatus);
    observer.disconnect();
    cancelAnimationFrame(due);
    for (const [place, view] of mounted) {
      place.classList.remove("nbmap-mounted");
      view.close();
    }
    mounted.clear();
    run.views.clear();
  }
  return unmount;
}

// JupyterLab takes cells that are scrolled away out of the page and puts them back later: those
// are out of the page as a whole, and what is gone is out of its output.
function isGone(place) {
  return !place.isConnected && !place.closest(".jp-Cell, .jp-OutputArea");
}

export default {
  initialize({ model }) {
    if (!model.get("mounts")) return undefined;
    const run = new Run(model);
    const unmount = mountAll(run);
    return () => {
      unmount();
      run.close();
    };
  },
  render({ model, el }) {
    const run = new Run(model);
    const view = new View(run);
    el.append(view.root);
    return () => {
      view.close();
      run.close();
    };
  },
};
