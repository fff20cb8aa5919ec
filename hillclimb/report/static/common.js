"use strict";
const hillclimb = (() => {
  const $ = (id) => document.getElementById(id);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value;
      else if (value !== null && value !== false) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const whole = (n) => Math.round(n).toLocaleString("en-US");
  const brief = (n) => (n === null || n === undefined ? "–" : Number(Number(n).toPrecision(4)).toString());
  const si = (n) => {
    for (const [limit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]])
      if (Math.abs(n) >= limit) return brief((n / (suffix === "k" ? 1e3 : limit)).toPrecision(3)) + suffix;
    return brief(n);
  };

  /* Charts: a cursor that reads the nearest values, by pointer or arrow keys. */
  const tip = el("div", { id: "tip", hidden: "", "aria-hidden": "true" });
  document.body.append(tip);
  const units = { share: (y) => brief(100 * y) + " %", count: si, seconds: (y) => brief(y) + " s", number: brief };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  const chart = (figure) => {
    const panels = figure.querySelector(".panels"), plots = [...figure.querySelectorAll(".plot")];
    let data = null, key = 0.5;
    const show = (share) => {
      data ??= JSON.parse(figure.dataset.chart);
      const [x0, x1] = data.at, box = plots[0].getBoundingClientRect();
      key = Math.min(1, Math.max(0, share));
      const x = x0 + key * (x1 - x0);
      let exact = x;
      const rows = data.series.flatMap(([name, at, unit, tone, ys]) => {
        const xs = data.xs[at], i = nearest(xs, x);
        if (!xs.length || ys[i] === null || Math.abs(xs[i] - x) > (x1 - x0) / 25) return [];
        exact = xs[i];
        return [el("div", { class: "t" + tone }, el("span", { text: name }), el("em", { text: units[unit](ys[i]) }))];
      });
      tip.replaceChildren(el("b", { text: `${data.x} ${si(exact)}` }), ...rows);
      for (const plot of plots) {
        const line = plot.querySelector(".cursor");
        line.style.left = 100 * key + "%";
        line.style.opacity = 0.5;
      }
      tip.hidden = false;
      const left = box.left + key * box.width, width = tip.offsetWidth;
      tip.style.left = Math.max(4, left + 14 + width > innerWidth ? left - width - 14 : left + 14) + "px";
      tip.style.top = Math.max(4, box.top - tip.offsetHeight - 6) + "px";
    };
    const hide = () => {
      tip.hidden = true;
      for (const plot of plots) plot.querySelector(".cursor").style.opacity = 0;
    };
    const follow = (event) => {
      const box = plots[0].getBoundingClientRect();
      show((event.clientX - box.left) / box.width);
    };
    panels.addEventListener("pointermove", follow);
    panels.addEventListener("pointerdown", follow);
    panels.addEventListener("pointerleave", hide);
    panels.addEventListener("blur", hide);
    panels.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (step) { event.preventDefault(); show(key + step); }
      if (event.key === "Escape") hide();
    });
  };

  /* A text with its tags, and what was searched for, marked. */
  const marked = (text, search) => {
    const pre = el("pre", { tabindex: "0" });
    for (const piece of text.split(/(<\/?[A-Za-z_|][^<>\n]{0,60}>)/)) {
      const tag = /^<\/?[A-Za-z_|][^<>\n]{0,60}>$/.test(piece), lower = piece.toLowerCase();
      let at = 0, hit;
      const parts = [];
      while (search && (hit = lower.indexOf(search, at)) >= 0) {
        parts.push(piece.slice(at, hit), el("mark", { text: piece.slice(hit, hit + search.length) }));
        at = hit + search.length;
      }
      parts.push(piece.slice(at));
      if (tag) pre.append(el("span", { class: "tag" }, ...parts)); else pre.append(...parts);
    }
    return pre;
  };
  const facts = (pairs) => el("dl", { class: "ro-meta" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));

  /* Tokens, each with how far learner and engine are apart. */
  const LEVELS = [0.001, 0.01, 0.1, 0.5];
  const signed = (n) => (n > 0 ? "+" : "") + brief(n);
  const level = (gap) => LEVELS.filter((limit) => Math.abs(gap) >= limit).length;
  const look = (logprob, gap) => (logprob === null ? "obs" : gap === null ? "q4 down" : `q${level(gap)} ${gap > 0 ? "up" : "down"}`);
  const versionOf = (data, i) => (Array.isArray(data.version) ? data.version[i] : data.version);
  const tokens = (data) => {
    const known = data.gap.flatMap((gap, i) => (gap === null ? [] : [i]));
    const largest = known.reduce((best, i) => (best < 0 || Math.abs(data.gap[i]) > Math.abs(data.gap[best]) ? i : best), -1);
    const total = known.reduce((sum, i) => sum + Math.abs(data.gap[i]), 0);
    const told = el("p", { class: "tok-told", role: "status" });
    const pre = el("pre", { class: "tok", tabindex: "0", role: "group", "aria-label": "Tokens. Arrow keys go from one to the next." });
    let place = -1, before = null;
    data.pieces.forEach((piece, i) => {
      const version = versionOf(data, i);
      if (before !== null && version !== before) pre.append(el("span", { class: "ver", text: `weights ${version}` }));
      before = version;
      if (data.logprob[i] === null && (i === 0 || data.logprob[i - 1] !== null)) pre.append(el("span", { class: "ver", text: "observation" }));
      pre.append(el("span", { class: "k " + look(data.logprob[i], data.gap[i]), "data-at": i, text: piece === "" ? "·" : piece }));
    });
    const nodes = [...pre.querySelectorAll(".k")];
    const show = (i) => {
      if (!nodes.length) return;
      nodes[place]?.classList.remove("here");
      place = Math.min(Math.max(i, 0), nodes.length - 1);
      nodes[place].classList.add("here");
      const said = `Token ${place + 1} of ${nodes.length} `, name = el("code", { text: JSON.stringify(data.pieces[place]) });
      if (data.logprob[place] === null) { told.replaceChildren(said, name, ": an observation, not drawn"); return; }
      const gap = data.gap[place];
      told.replaceChildren(said, name, ": gap ", el("b", { text: gap === null ? "not a number" : signed(gap) }),
        `; engine ${brief(data.logprob[place])}`, gap === null ? "" : `, learner ${brief(data.logprob[place] + gap)}`, `; drawn by weights ${versionOf(data, place)}`);
    };
    const under = (event) => { const node = event.target.closest?.(".k"); if (node) show(Number(node.dataset.at)); };
    pre.addEventListener("pointerover", under);
    pre.addEventListener("click", under);
    pre.addEventListener("focus", () => { if (place < 0) show(Math.max(largest, 0)); });
    pre.addEventListener("keydown", (event) => {
      const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: nodes.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(next);
      nodes[place].scrollIntoView({ block: "nearest" });
    });
    const jump = el("button", { type: "button", text: "Largest gap" });
    jump.addEventListener("click", () => { show(largest); nodes[largest].scrollIntoView({ block: "nearest" }); pre.focus({ preventScroll: true }); });
    jump.disabled = largest < 0;
    const [version, steps] = data.learner;
    const fresh = steps === 0 && data.pieces.every((_, i) => versionOf(data, i) === version);
    const key = el("p", { class: "tok-key" }, "Gap, in nats: ",
      ...LEVELS.map((limit, i) => el("span", { class: `k q${i + 1} down`, text: `≥ ${limit}` })),
      el("span", { class: "k q3 up", text: "learner likelier" }), el("span", { class: "k q3 down", text: "less likely" }));
    show(largest);
    return el("div", { class: "tokens" },
      el("p", { class: "note", text: `Log-probability of each token under the learner (weights ${version}${steps ? ` and ${steps} gradient step${steps > 1 ? "s" : ""}` : ""}, before the step that learnt from it) less that under the engine that drew it. ` +
        (fresh ? "Both have the same weights: the gap is mismatch alone." : "The weights differ: the gap is mismatch and what was learnt between.") +
        (known.length ? ` Mean |gap| ${brief(total / known.length)}.` : "") }),
      key, el("div", { class: "tok-bar" }, told, jump), pre);
  };
  return { $, el, whole, brief, si, chart, marked, facts, tokens };
})();
