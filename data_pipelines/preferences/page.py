"""The labelling page: one HTML document without a dependency, in Chinese and English."""

WORDS = {
  "zh": {
    "title": "哪一张更好？",
    "first": "左边更好",
    "second": "右边更好",
    "tie": "一样好",
    "undo": "撤销",
    "keys": "← 左边　→ 右边　↓ 一样好　退格 撤销",
    "done": "全部标完了，谢谢！",
    "saved": "已保存",
    "lost": "连不上标注程序，最后一次选择没有保存",
    "other": "English",
  },
  "en": {
    "title": "Which is better?",
    "first": "Left is better",
    "second": "Right is better",
    "tie": "Equally good",
    "undo": "Undo",
    "keys": "← left   → right   ↓ equal   Backspace undo",
    "done": "All done, thank you!",
    "saved": "saved",
    "lost": "The labelling program does not answer; the last choice was not saved",
    "other": "中文",
  },
}

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Preferences</title>
<style>
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; height: 100vh; display: grid; grid-template-rows: auto minmax(0, 1fr) auto; gap: 10px;
  padding: 14px 20px; font: 17px/1.4 system-ui, "Noto Sans CJK SC", sans-serif;
  background: #f4f4f2; color: #1b1b1b; }
header { display: grid; grid-template-columns: 1fr auto; gap: 4px 20px; align-items: start; }
#prompt { font-size: 26px; font-weight: 600; overflow-wrap: anywhere; }
#state { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
progress { grid-column: 1 / -1; width: 100%; height: 8px; accent-color: #2c6bed; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
figure { margin: 0; display: grid; grid-template-rows: auto minmax(0, 1fr); gap: 6px;
  cursor: pointer; border: 3px solid transparent; border-radius: 8px; padding: 8px; background: #fff; }
figure:hover { border-color: #2c6bed; }
figcaption { text-align: center; font-weight: 600; color: #555; }
figure div { position: relative; }
img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
img.small { image-rendering: pixelated; }
footer { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; }
button { font: inherit; padding: 8px 16px; border: 1px solid #999; border-radius: 6px;
  background: #fff; color: inherit; cursor: pointer; }
button:focus-visible, figure:focus-visible { outline: 3px solid #2c6bed; }
#keys { margin-left: auto; color: #666; white-space: pre; }
#error { color: #b00020; font-weight: 600; }
#error:not(:empty) { flex-basis: 100%; order: -1; }
body.done main { visibility: hidden; }
@media (prefers-color-scheme: dark) {
  body { background: #1c1c1e; color: #eee; } figure, button { background: #2a2a2d; }
  #keys, figcaption { color: #aaa; } #error { color: #ff8a80; }
}
</style>
</head>
<body>
<header>
  <div id="prompt"></div>
  <div id="state"><b id="count"></b> <span id="title"></span></div>
  <progress id="bar" value="0" max="1"></progress>
</header>
<main>
  <figure id="first" tabindex="0"><figcaption>A</figcaption><div><img alt="A"></div></figure>
  <figure id="second" tabindex="0"><figcaption>B</figcaption><div><img alt="B"></div></figure>
</main>
<footer>
  <button id="choose0"></button><button id="tie"></button><button id="choose1"></button>
  <button id="undo"></button><span id="error" role="alert"></span>
  <span id="keys"></span><button id="other"></button>
</footer>
<script>
const WORDS = __WORDS__;
let lang = localStorage.lang || (navigator.language.startsWith("zh") ? "zh" : "en");
let now = null, busy = false;
const $ = id => document.getElementById(id);
function show() {
  const words = WORDS[lang];
  document.documentElement.lang = lang;
  for (const [id, word] of [["title", "title"], ["choose0", "first"], ["choose1", "second"],
       ["tie", "tie"], ["undo", "undo"], ["keys", "keys"], ["other", "other"]])
    $(id).textContent = words[word];
  if (!now) return;
  $("count").textContent = now.done + " / " + now.total;
  $("bar").value = now.done; $("bar").max = now.total;
  $("undo").disabled = !now.can_undo;
  document.body.classList.toggle("done", !now.id);
  $("prompt").lang = now.lang || lang;
  $("prompt").textContent = now.id ? now.prompt : words.done;
  if (now.id) ["first", "second"].forEach((id, k) => {
    document.querySelector("#" + id + " img").src = "/image?k=" + k + "&id=" + encodeURIComponent(now.id);
  });
}
async function call(path, body) {
  if (busy) return;  // a held key chooses once
  busy = true;
  try {
    const options = body === undefined ? {} : {method: "POST", body: JSON.stringify(body),
      headers: {"Content-Type": "application/json"}};
    const answer = await fetch(path, options);
    const got = await answer.json();
    if (!answer.ok) throw new Error(got.error);
    now = got; $("error").textContent = "";
  } catch (e) {
    $("error").textContent = WORDS[lang].lost + (e.message ? " (" + e.message + ")" : "");
  }
  busy = false;
  show();
}
const choose = preferred => now && now.id && call("/choose", {id: now.id, preferred});
const undo = () => call("/undo", {});
$("first").onclick = $("choose0").onclick = () => choose(0);
$("second").onclick = $("choose1").onclick = () => choose(1);
$("tie").onclick = () => choose("tie");
$("undo").onclick = undo;
$("other").onclick = () => { lang = lang === "zh" ? "en" : "zh"; localStorage.lang = lang; show(); };
addEventListener("keydown", event => {
  const act = {ArrowLeft: () => choose(0), ArrowRight: () => choose(1),
    ArrowDown: () => choose("tie"), Backspace: undo}[event.key];
  if (!act || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  if (!event.repeat) act();
});
for (const img of document.images)  // enlarged, pixels stay pixels; made smaller, they are averaged
  img.onload = () => img.classList.toggle("small", img.naturalWidth < img.clientWidth);
call("/next");
</script>
</body>
</html>
"""
