// What a reader can do with a page: run in the browser by test_browser.py, returns a list for each kind of fault.
(() => {
  const faults = {};
  const note = (kind, what) => (faults[kind] = faults[kind] || []).push(String(what).slice(0, 160));
  const words = (e) => (e.getAttribute("aria-label") || e.textContent || "").trim();
  const visible = (e) => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});

  if (document.documentElement.scrollWidth > innerWidth)
    note("scroll", `page is ${document.documentElement.scrollWidth} wide, window ${innerWidth}`);
  for (const e of document.querySelectorAll("main *")) {
    const box = e.getBoundingClientRect();
    if (visible(e) && box.width && box.right > innerWidth + 1 && !e.closest(".box, .pic"))
      note("scroll", `${e.tagName}.${e.className} ends at ${Math.round(box.right)}`);
  }

  for (const e of document.querySelectorAll("main *")) {
    const scrolls = visible(e) && e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX);
    if (scrolls && e.tabIndex < 0 && !e.querySelector("a[href], button, summary, [tabindex]"))
      note("reach", `${e.tagName}.${e.className} scrolls, and the tab key does not get there`);
  }

  if (!document.documentElement.lang) note("lang", "no language");
  if (document.querySelectorAll("h1").length < 1) note("headings", "no h1");
  let before = 0;
  for (const h of document.querySelectorAll("h1, h2, h3, h4")) {
    const level = Number(h.tagName[1]);
    if (before && level > before + 1) note("headings", `h${before} then h${level}: ${words(h)}`);
    before = level;
  }
  for (const e of document.querySelectorAll("img")) if (!e.alt) note("alt", e.outerHTML);
  for (const e of document.querySelectorAll("svg"))
    if (e.getAttribute("role") !== "img" || words(e).length < 20) note("alt", e.outerHTML);
  for (const e of document.querySelectorAll("a, button, summary, [tabindex], nav, input, select"))
    if (!words(e)) note("names", e.outerHTML);
  for (const e of document.querySelectorAll("nav, [role=region]"))
    if (!e.getAttribute("aria-label")) note("names", e.outerHTML);
  for (const e of document.querySelectorAll("th")) if (!e.scope) note("tables", e.outerHTML);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) < i))) note("ids", id);
  for (const a of document.querySelectorAll('a[href^="#"]'))
    if (!document.getElementById(decodeURIComponent(a.hash.slice(1)))) note("links", a.hash);

  // contrast of every visible text (WCAG 2.1: 4.5, large text 3), against what lies behind it
  const channel = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], back) => [r, g, b].map((c, i) => a * c + (1 - a) * back[i]);
  const behind = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length && c[3] !== 0) layers.push(c);
      if (c.length && (c[3] ?? 1) === 1) break;
    }
    return layers.reverse().reduce((back, c) => over(c, back), [255, 255, 255]);
  };
  let lowest = 21;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const done = new Map();
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || e.closest("script, style") || done.has(e)) continue;
    done.set(e, true);
    const style = getComputedStyle(e), inside = e.closest("svg");
    if (!visible(inside || e)) continue;
    const ink = parse(inside ? style.fill : style.color);
    if (ink.length < 3) continue;
    const back = behind(inside ? inside.parentElement : e);
    const [a, b] = [light(over(ink, back)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    lowest = Math.min(lowest, ratio);
    if (ratio < (large ? 3 : 4.5)) note("contrast", `${ratio.toFixed(2)}: ${words(e).slice(0, 60)}`);
  }
  return {faults, lowest, texts: done.size, dark: light(behind(document.body)) < 0.2};
})()
