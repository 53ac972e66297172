
"use strict";
// Everything is there without this script: it only folds the reasons of a layer away until somebody asks.
for (const button of document.querySelectorAll("button.opens")) {
  const row = document.getElementById(button.getAttribute("aria-controls"));
  const show = (open) => { button.setAttribute("aria-expanded", String(open)); row.hidden = !open; };
  show(false);
  button.addEventListener("click", () => show(row.hidden));
}
for (const box of document.querySelectorAll("input.only")) {
  const rows = document.getElementById(box.dataset.for);
  box.addEventListener("change", () => rows.classList.toggle("short", box.checked));
}
// On paper every run is open, whatever was folded on the screen.
const runs = [...document.querySelectorAll("details.run")];
let folded = [];
addEventListener("beforeprint", () => { folded = runs.filter((one) => !one.open); folded.forEach((one) => { one.open = true; }); });
addEventListener("afterprint", () => { folded.forEach((one) => { one.open = false; }); });
document.documentElement.classList.add("scripted");
