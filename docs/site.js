// Search over the sections in search.js (loaded at the first use), the list of pages on narrow screens, and a mark below what is wider than its box.
const root = document.currentScript.dataset.root, box = document.getElementById("search"), found = document.getElementById("found")
const menu = document.getElementById("menu"), pages = document.getElementById("pages")
let ready

function load() {
  ready ??= new Promise((done, fail) => {
    const script = document.createElement("script")
    Object.assign(script, {src: `${root}/search.js`, onload: done, onerror: fail})
    document.head.append(script)
  })
  return ready
}

function starts(text, word) {  // where a word of the text begins with this one; -1: nowhere
  for (let i = text.indexOf(word); i >= 0; i = text.indexOf(word, i + 1))
    if (i === 0 || !/[\p{L}\p{N}]/u.test(text[i - 1])) return i
  return -1
}

function score(section, words) {  // 0 unless every word is somewhere; titles and headings count more than text
  let sum = 0
  for (const word of words) {
    const hits = [[section.t, 5], [section.h, 8], [section.x, 1]].filter(([text]) => starts(text.toLowerCase(), word) >= 0)
    if (!hits.length) return 0
    sum += Math.max(...hits.map(([, weight]) => weight))
  }
  return sum
}

function excerpt(text, word) {
  const at = starts(text.toLowerCase(), word), from = Math.max(0, at - 60), line = document.createElement("p")
  if (at < 0) line.append(text.slice(0, 140))
  else {
    const mark = document.createElement("mark")
    mark.append(text.slice(at, at + word.length))
    line.append(from ? "…" : "", text.slice(from, at), mark, text.slice(at + word.length, at + word.length + 90), "…")
  }
  return line
}

async function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean)
  found.hidden = !words.length
  if (!words.length) return
  await load()
  const hits = SECTIONS.map(s => [score(s, words), s]).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 30)
  found.replaceChildren(...(hits.length ? hits.map(([, s]) => {
    const link = document.createElement("a")
    link.href = `${root}/${s.p}${s.a ? "#" + encodeURIComponent(s.a) : ""}`
    link.append(s.h ? `${s.t}: ${s.h}` : s.t, excerpt(s.x, words[0]))
    link.onclick = () => { found.hidden = true }
    return link
  }) : ["Nothing found."]))
}

box.addEventListener("focus", load)
box.addEventListener("input", search)
box.form.addEventListener("submit", event => { event.preventDefault(); found.querySelector("a")?.click() })
document.addEventListener("keydown", event => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); box.focus() }
  if (event.key === "Escape") { found.hidden = true; box.blur() }
})
menu.addEventListener("click", () => menu.setAttribute("aria-expanded", pages.classList.toggle("open")))

const boxes = new ResizeObserver(entries => requestAnimationFrame(() => {  // in the next frame, since the mark changes a height that is watched
  for (const {target} of entries) {
    const box = target.closest(".scroll")
    box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1)
  }
}))
for (const box of document.querySelectorAll(".scroll")) { boxes.observe(box); boxes.observe(box.firstElementChild) }
