"use strict";
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const [PROMPT, MODEL, LETTER, TEXT, GOLD, REWARD, DRIFT] = [0, 1, 2, 3, 4, 5, 6];
  const STEP = 30;
  const by = (id) => document.getElementById(id);
  const answers = data.models.map(() => new Map());
  for (const row of data.rows) answers[row[MODEL]].set(`${row[PROMPT]} ${row[LETTER]}`, row);
  const orders = {
    best: (a, b) => gain(b) - gain(a),
    worst: (a, b) => gain(a) - gain(b),
    drift: (a, b) => (b[0][DRIFT] ?? -Infinity) - (a[0][DRIFT] ?? -Infinity),
  };
  let pairs = [];
  let found = [];
  let shown = 0;

  const gain = ([ours, theirs]) => ours[GOLD] - (theirs ? theirs[GOLD] : 0);
  const number = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2));
  const make = (tag, kind, text) => {
    const element = document.createElement(tag);
    element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // whether each word of `ours` is in the longest common subsequence with `theirs`
  const shared = (ours, theirs) => {
    const width = theirs.length + 1;
    const table = new Uint16Array((ours.length + 1) * width);
    for (let i = ours.length - 1; i >= 0; i--)
      for (let j = theirs.length - 1; j >= 0; j--)
        table[i * width + j] =
          ours[i] === theirs[j] ? table[(i + 1) * width + j + 1] + 1 : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    const kept = new Array(ours.length).fill(false);
    for (let i = 0, j = 0; i < ours.length && j < theirs.length; )
      if (ours[i] === theirs[j]) (kept[i] = true), i++, j++;
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++;
      else j++;
    return kept;
  };
  const words = (text) => text.split(/\s+/).filter(Boolean);
  const marked = (text, other) => {
    const p = make("p", "text");
    if (other === null || !text) return p.append(text || "(empty)"), p;
    const same = shared(words(text), words(other));
    let place = 0;
    for (const piece of text.split(/(\s+)/)) {
      if (!piece) continue;
      if (/^\s/.test(piece) || same[place++]) p.append(piece);
      else p.append(make("mark", "", piece));
    }
    return p;
  };
  const answer = (row, other) => {
    const td = make("td", "t");
    td.style.setProperty("--c", `var(--${data.slots[row[MODEL]]})`);
    const who = make("p", "who");
    who.append(`${data.models[row[MODEL]]} ${row[LETTER]}`);
    who.append(make("span", "quiet", `gold ${number(row[GOLD])}, reward ${number(row[REWARD])}, drift ${number(row[DRIFT])}`));
    td.append(who, marked(row[TEXT], other ? other[TEXT] : null));
    return td;
  };
  const line = ([ours, theirs]) => {
    const tr = document.createElement("tr");
    const difference = make("td", "n", theirs ? number(gain([ours, theirs])) : number(ours[GOLD]));
    difference.dataset.label = theirs ? "gold, difference" : "gold";
    tr.append(make("td", "p", data.prompts[ours[PROMPT]]), answer(ours, theirs));
    if (theirs) tr.append(answer(theirs, ours));
    tr.append(difference);
    return tr;
  };
  const more = () => {
    by("rows").append(...found.slice(shown, shown + STEP).map(line));
    shown = Math.min(shown + STEP, found.length);
    by("more").hidden = shown >= found.length;
    by("count").textContent = `${found.length.toLocaleString("en")} ${pairs.length && pairs[0][1] ? "comparisons" : "answers"}`;
  };
  const search = () => {
    const wanted = by("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    found = pairs.filter(([ours, theirs, text]) => wanted.every((word) => text.includes(word)));
    const order = orders[by("order").value];
    if (order) found.sort(order);
    by("rows").replaceChildren();
    shown = 0;
    more();
  };
  const compare = () => {
    const [ours, theirs] = ["model", "against"].map((id) => data.models.indexOf(by(id).value));
    const others = ours === theirs ? new Map() : answers[theirs];
    pairs = [...answers[ours]].map(([key, row]) => {
      const other = others.get(key);
      return [row, other, `${data.prompts[row[PROMPT]]}\n${row[TEXT]}\n${other ? other[TEXT] : ""}`.toLowerCase()];
    });
    by("theirs").hidden = ours === theirs;
    search();
  };
  by("query").addEventListener("input", search);
  by("order").addEventListener("change", search);
  for (const id of ["model", "against"]) by(id).addEventListener("change", compare);
  by("more").addEventListener("click", more);
  compare();
})();
