"use strict";
// Column heads sort: numbers by size, words by letters; a second press turns the order round.
const number = (text) => { const found = text.replace(/,/g, "").match(/-?\d+(\.\d+)?(e[+-]?\d+)?/i); return found ? parseFloat(found[0]) : NaN; };
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const words = !head.classList.contains("number");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        if (words) return key(a).localeCompare(key(b), undefined, { numeric: true }) * (up ? 1 : -1);
        const [x, y] = [number(key(a)), number(key(b))];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return (x - y) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// A figure's points show their values under the pointer, or one after the other with the arrow keys.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);
for (const canvas of document.querySelectorAll(".canvas[data-points]")) {
  const points = JSON.parse(canvas.dataset.points || "[]");
  const svg = canvas.querySelector("svg");
  if (!points.length || !svg) continue;
  const box = svg.viewBox.baseVal;
  let at = -1;
  const show = (index) => {
    const place = svg.getBoundingClientRect();
    const [x, y, text] = points[index];
    at = index;
    tip.textContent = text;
    tip.style.display = "block";
    const left = place.left + x / box.width * place.width, top = place.top + y / box.height * place.height;
    tip.style.left = Math.max(4, Math.min(left + 10, innerWidth - tip.offsetWidth - 4)) + "px";
    tip.style.top = Math.max(4, top - tip.offsetHeight - 10) + "px";
  };
  const hide = () => { at = -1; tip.style.display = "none"; };
  canvas.addEventListener("pointermove", (event) => {
    const place = svg.getBoundingClientRect(), scale = box.width / place.width;
    const x = (event.clientX - place.left) * scale, y = (event.clientY - place.top) * scale;
    let nearest = -1, least = 18 * scale;
    points.forEach(([px, py], index) => { const far = Math.hypot(px - x, py - y); if (far < least) { least = far; nearest = index; } });
    if (nearest < 0) hide(); else show(nearest);
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("blur", hide);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") return hide();
    if (!step) return;
    event.preventDefault();
    show((at + step + points.length) % points.length);
  });
}
