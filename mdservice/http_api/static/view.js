// How values are written, and the parts of the page that are made of them. No state.

const plain = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 4 });
const small = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 8 });
const money = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 9 });
const NOTHING = "–";

export const price = (value) => (value == null ? NOTHING : (Math.abs(value) < 1 ? small : plain).format(value));
export const amount = (value) => (value == null ? NOTHING : whole.format(value));
export const signed = (value) => (value == null ? NOTHING : `${value > 0 ? "+" : ""}${money.format(value)}`);
export const percent = (value) => (value == null ? NOTHING : `${value > 0 ? "+" : ""}${value.toFixed(2)} %`);
export const sign = (value) => (value > 0 ? "up" : value < 0 ? "down" : "");

export function age(seconds) {
  if (seconds < 0.95) return "now";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

export function spread({ bid, ask, price: mid }) {
  if (!bid || !ask || !mid) return NOTHING;
  return `${(((ask - bid) / mid) * 10000).toFixed(1)} bp`;
}

// An element with a class, a text and children.
export function make(name, className = "", text = "", ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  element.append(...children);
  return element;
}

export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Entries of a definition list: [name, text, class].
export function define(list, entries) {
  list.replaceChildren(...entries.map(([name, text, className = ""]) =>
    make("div", "", "", make("dt", "", name), make("dd", className, text))));
}

// Rows of texts; the first cell names the row. A cell is a text, or [text, class].
export function fill(table, rows) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.className);
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, place) => {
    const row = body.rows[place] ?? body.insertRow();
    cells.forEach((cell, column) => {
      const [text, className = ""] = Array.isArray(cell) ? cell : [cell];
      let element = row.cells[column];
      if (!element) {
        element = make(column === 0 ? "th" : "td");
        if (column === 0) element.scope = "row";
        row.append(element);
      }
      write(element, String(text));
      const wanted = `${heads[column]} ${className}`.trim();
      if (element.className !== wanted) element.className = wanted;
    });
  });
}

const SVG = "http://www.w3.org/2000/svg";

export function chart() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "chart");
  svg.setAttribute("viewBox", "0 0 120 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "polyline"));
  return svg;
}

// Draw values, the newest on the right; `most` values fill the width.
export function draw(svg, values, most) {
  const low = Math.min(...values);
  const range = Math.max(...values) - low;
  const points = values.map((value, place) => {
    const x = ((most - values.length + place) / (most - 1)) * 120;
    const y = range ? 18 - ((value - low) / range) * 16 : 10;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  svg.firstChild.setAttribute("points", points.join(" "));
}

// What a change of a feed's state says in one line.
export function told(event) {
  const where = [event.feed, event.channel].filter(Boolean).join(" ");
  const texts = {
    connected: "connected", disconnected: "disconnected", gap_repaired: "gap repaired",
    gap: event.refreshed ? "gap; the latest values are out again" : "gap",
    fallback: "another driver is used", stale: "nothing comes", fatal: "gave up", takeover: "took over",
  };
  const symbols = event.symbols?.length
    ? `: ${event.symbols.slice(0, 5).join(", ")}${event.symbols.length > 5 ? ` and ${event.symbols.length - 5} more` : ""}` : "";
  return `${where} ${texts[event.state] ?? event.state}${symbols}${event.reason ? ` (${event.reason})` : ""}`;
}

// Trading statuses of both tapes that stop trading: halts and pauses.
export const isHalted = (record) => ["2", "H", "P"].includes(record.status_code);
