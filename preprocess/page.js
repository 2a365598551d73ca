// The chunk viewer: what a token is where the mouse or the keyboard is on it, and search. All text is set as text.
const data = JSON.parse(document.getElementById("data").textContent);
const blocks = [...document.querySelectorAll(".tokens")];
const readout = document.getElementById("readout");
const query = document.getElementById("query");
const told = document.getElementById("matches");
let current = null;
let found = [];
let place = -1;

const tokensOf = (block) => [...block.children];

function describe(token) {
  const id = token.title;
  const uses = data.uses[id];
  const block = token.parentElement;
  const first = Number(block.dataset.start);
  const number = first + tokensOf(block).indexOf(token);
  const share = uses === undefined ? "" : ` \u00b7 used ${uses.toLocaleString("en")} times in ${data.num_ids.toLocaleString("en")} ids`;
  const text = token.className === "part" ? "part of a character" : JSON.stringify(token.textContent);
  return `id ${id} \u00b7 ${text} \u00b7 token ${number.toLocaleString("en")} of its document${share}`;
}

function show(token) {
  if (current) current.classList.remove("current");
  current = token;
  readout.textContent = token ? describe(token) : "";
  if (token) token.classList.add("current");
}

for (const block of blocks) {
  block.addEventListener("mouseover", (event) => show(event.target === block ? null : event.target));
  block.addEventListener("mouseleave", () => show(null));
  block.addEventListener("focus", () => show(block.contains(current) ? current : block.firstElementChild));
  block.addEventListener("blur", () => show(null));
  block.addEventListener("keydown", (event) => {
    const tokens = tokensOf(block);
    const at = Math.max(tokens.indexOf(current), 0);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: tokens.length - 1 }[event.key];
    if (next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    show(tokens[Math.min(Math.max(next, 0), tokens.length - 1)]);
    current.scrollIntoView({ block: "nearest" });
  });
}

// A block's text in lower case, and where each of its tokens ends in it: in lower case some letters become two.
const texts = blocks.map((block) => {
  const tokens = tokensOf(block);
  const pieces = tokens.map((token) => token.textContent.toLowerCase());
  let end = 0;
  return { tokens, text: pieces.join(""), ends: pieces.map((piece) => (end += piece.length)) };
});

function tokensAt({ tokens, ends }, start, stop) {
  let low = 0;
  let high = ends.length - 1;
  while (low < high) {
    const half = (low + high) >> 1;
    if (ends[half] > start) high = half; else low = half + 1;
  }
  const hit = [];
  for (let i = low; i < tokens.length; i++) {
    hit.push(tokens[i]);
    if (ends[i] >= stop) break;
  }
  return hit;
}

function search() {
  for (const hit of found) for (const token of hit) token.classList.remove("found");
  found = [];
  place = -1;
  const wanted = query.value.toLowerCase();
  for (const block of texts) {
    if (!wanted) break;
    for (const token of /^#\d+$/.test(wanted) ? block.tokens : []) if (token.title === wanted.slice(1)) found.push([token]);
    for (let at = block.text.indexOf(wanted); at >= 0; at = block.text.indexOf(wanted, at + wanted.length)) {
      found.push(tokensAt(block, at, at + wanted.length));
    }
  }
  for (const hit of found) for (const token of hit) token.classList.add("found");
  const chunks = new Set(found.map((hit) => hit[0].closest("details")));
  for (const chunk of chunks) chunk.open = true;
  told.textContent = wanted ? `${found.length.toLocaleString("en")} found in ${chunks.size} of these chunks` : "";
}

function go(step) {
  if (!found.length) return;
  if (place < 0 && step < 0) place = 0;
  place = (place + step + found.length) % found.length;
  const token = found[place][0];
  show(token);
  token.scrollIntoView({ block: "center" });
  told.textContent = `${(place + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")} found`;
}

if (query) {
  query.addEventListener("input", search);
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter") go(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") { query.value = ""; search(); show(null); }
  });
  document.getElementById("next").addEventListener("click", () => go(1));
  document.getElementById("previous").addEventListener("click", () => go(-1));
}
