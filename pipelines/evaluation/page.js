"use strict";
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const [PROMPT, MODEL, LETTER, TEXT, GOLD, REWARD, DRIFT] = [0, 1, 2, 3, 4, 5, 6];
  const STEP = 30;
  const by = (id) => document.getElementById(id);
  const haystack = data.rows.map((row) => (data.prompts[row[PROMPT]] + "\n" + row[TEXT]).toLowerCase());
  const orders = {
    best: (a, b) => b[GOLD] - a[GOLD],
    worst: (a, b) => a[GOLD] - b[GOLD],
    drift: (a, b) => (b[DRIFT] ?? -Infinity) - (a[DRIFT] ?? -Infinity),
  };
  let found = [];
  let shown = 0;

  const number = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2));
  const cell = (text, kind, label) => {
    const td = document.createElement("td");
    td.className = kind;
    td.textContent = text;
    if (label) td.dataset.label = label;
    return td;
  };
  const line = (row) => {
    const tr = document.createElement("tr");
    const model = cell("", "m");
    const dot = document.createElement("span");
    dot.className = "dot";
    dot.style.setProperty("--c", `var(--${data.slots[row[MODEL]]})`);
    model.append(dot, `${data.models[row[MODEL]]} ${row[LETTER]}`);
    tr.append(
      cell(data.prompts[row[PROMPT]], "p"), model, cell(row[TEXT] || "(empty)", "t"),
      cell(number(row[GOLD]), "n", "gold"), cell(number(row[REWARD]), "n", "reward"), cell(number(row[DRIFT]), "n", "drift"),
    );
    return tr;
  };
  const more = () => {
    by("rows").append(...found.slice(shown, shown + STEP).map(line));
    shown = Math.min(shown + STEP, found.length);
    by("more").hidden = shown >= found.length;
    by("count").textContent = `${found.length.toLocaleString("en")} answers`;
  };
  const search = () => {
    const words = by("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const model = data.models.indexOf(by("model").value);
    found = data.rows.filter((row, i) => (model < 0 || row[MODEL] === model) && words.every((word) => haystack[i].includes(word)));
    const order = orders[by("order").value];
    if (order) found.sort(order);
    by("rows").replaceChildren();
    shown = 0;
    more();
  };
  by("query").addEventListener("input", search);
  by("model").addEventListener("change", search);
  by("order").addEventListener("change", search);
  by("more").addEventListener("click", more);
  search();
})();
