(() => {
  const { $, el, whole, brief, chart, marked, facts, tokens } = hillclimb;
  document.querySelectorAll("figure[data-chart]").forEach(chart);

  /* Tabs: one climb at a time. */
  for (const tabs of document.querySelectorAll(".tabs")) {
    const list = [...tabs.querySelectorAll("[role=tab]")];
    const choose = (tab, focus) => {
      for (const other of list) {
        const chosen = other === tab;
        other.setAttribute("aria-selected", chosen);
        other.tabIndex = chosen ? 0 : -1;
        $(other.hash.slice(1)).hidden = !chosen;
      }
      if (focus) tab.focus();
    };
    list.forEach((tab, index) => {
      tab.setAttribute("aria-controls", tab.hash.slice(1));
      tab.addEventListener("click", (event) => { event.preventDefault(); choose(tab); });
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step) { event.preventDefault(); choose(list[(index + step + list.length) % list.length], true); }
        if (event.key === " ") { event.preventDefault(); choose(tab); }
      });
    });
    tabs.classList.add("ready");
    choose(list.find((tab) => tab.hash === location.hash) ?? list[0]);
  }

  /* The graph: a box shows what it is made from and what is made from it. */
  for (const box of document.querySelectorAll(".graph .box")) {
    const near = (on) => {
      for (const edge of document.querySelectorAll(".graph .edge")) {
        const touches = edge.dataset.from === box.dataset.stage || edge.dataset.to === box.dataset.stage;
        edge.classList.toggle("near", on && touches);
      }
    };
    for (const name of ["pointerenter", "focus"]) box.addEventListener(name, () => near(true));
    for (const name of ["pointerleave", "blur"]) box.addEventListener(name, () => near(false));
  }

  /* Links into a folded part open it. */
  const unfold = () => {
    if (!location.hash || location.hash.startsWith("#rollout=")) return;
    const target = $(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();

  /* Rollouts: blocks are unpacked when they are looked at. */
  const sources = [...document.querySelectorAll("script.block")];
  if (!sources.length) return;
  if (!("DecompressionStream" in window)) { $("ro-fallback").hidden = false; return; }
  $("ro").hidden = false;
  const PAGE = innerWidth > 820 ? 50 : 20;
  const blocks = sources.map((node) => ({ climb: node.dataset.climb, node, data: null }));
  const field = Object.fromEntries(
    ["climb", "kind", "status", "outcome", "min", "max", "from", "to", "sort", "text"].map((n) => [n, $("ro-" + n)]));
  const detail = $("ro-detail");
  let found = [], page = 0, current = null, turn = 0;

  const load = (block) => (block.data ??= (async () => {
    const packed = Uint8Array.from(atob(block.node.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const data = await new Response(stream).json();
    block.node.remove();
    return data;
  })());
  const word = (data, key, i) => data[key].words[data[key].at[i]];
  const idOf = (data, i) => `${data.climb}/${data.index ? data.index[i] : i}`;
  const link = (data, i) => "#rollout=" + encodeURI(idOf(data, i));
  const outcome = (data, i) => (!data.graded[i] ? "none" : data.task[i] > 0 ? "pass" : "fail");
  const SIGN = { pass: "✓", fail: "✗", none: "?" };
  const TOLD = { trained: "Its tokens are not in this file; what a step learnt from is in the files under tokens/ of the climb." };
  const SAY = { pass: "passed", fail: "failed", none: "not graded" };

  for (const block of blocks) field.climb.append(el("option", { value: block.climb, text: block.climb }));
  field.climb.append(el("option", { value: "", text: "all climbs" }));
  field.climb.value = blocks[blocks.length - 1].climb;

  const options = (select, values) => {
    const old = select.value;
    select.replaceChildren(el("option", { value: "", text: "any" }), ...values.map((v) => el("option", { value: v, text: v })));
    select.value = values.includes(old) ? old : "";
  };
  const bound = (input, otherwise) => (input.value === "" || isNaN(input.value) ? otherwise : Number(input.value));
  const matcher = (data, text) => {
    if (!text) return () => true;
    const hits = ["prompt", "reason", "problem_id"].map((key) => [data[key].at, data[key].words.map((w) => w.toLowerCase().includes(text))]);
    data.lower ??= data.response.map((r) => r.toLowerCase());
    return (i) => hits.some(([at, hit]) => hit[at[i]]) || data.lower[i].includes(text);
  };
  const wanted = (data, i) => {
    const kind = field.kind.value, status = field.status.value, state = field.outcome.value;
    if (kind && word(data, "kind", i) !== kind) return false;
    if (status && word(data, "status", i) !== status) return false;
    if (state === "truncated") return Boolean(data.truncated[i]);
    return !state || { pass: "pass", fail: "fail", ungraded: "none" }[state] === outcome(data, i);
  };
  const compare = (sort) => {
    const down = sort.startsWith("-") ? -1 : 1, key = sort.replace("-", "");
    if (key === "order") return down < 0 ? (a, b) => b[2] - a[2] : null;
    const value = ([data, i]) => data[key][i] ?? Infinity * down;
    return (a, b) => { const x = value(a), y = value(b); return (x < y ? -down : x > y ? down : a[2] - b[2]); };
  };

  const apply = async () => {
    const mine = ++turn;
    const chosen = blocks.filter((block) => !field.climb.value || block.climb === field.climb.value);
    $("ro-count").textContent = "Unpacking…";
    const datas = await Promise.all(chosen.map(load));
    if (mine !== turn) return;
    options(field.kind, [...new Set(datas.flatMap((d) => d.kind.words))].sort());
    options(field.status, [...new Set(datas.flatMap((d) => d.status.words))].sort());
    const text = field.text.value.trim().toLowerCase();
    const ranges = [["reward", bound(field.min, null), bound(field.max, null)], ["update", bound(field.from, null), bound(field.to, null)]];
    let total = 0;
    found = [];
    for (const data of datas) {
      const matches = matcher(data, text);
      for (let i = 0; i < data.response.length; i++, total++) {
        const inside = ranges.every(([key, low, high]) => (low === null && high === null) ||
          (data[key][i] !== null && (low === null || data[key][i] >= low) && (high === null || data[key][i] <= high)));
        if (inside && wanted(data, i) && matches(i)) found.push([data, i, total]);
      }
    }
    const order = compare(field.sort.value);
    if (order) found.sort(order);
    page = 0;
    summary(total);
    list();
  };
  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
  const summary = (total) => {
    const graded = found.filter(([d, i]) => d.graded[i]);
    const parts = [`${whole(found.length)} of ${whole(total)} rollouts`];
    if (graded.length) {
      parts.push(`mean reward ${brief(mean(graded.map(([d, i]) => d.reward[i] ?? 0)))}`);
      parts.push(`${(100 * mean(graded.map(([d, i]) => Number(d.task[i] > 0)))).toFixed(1)} % passed`);
    }
    if (found.length) parts.push(`mean length ${whole(mean(found.map(([d, i]) => d.response_tokens[i])))} tokens`);
    $("ro-count").textContent = parts.join(" · ");
  };
  const list = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    $("ro-list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(([data, i]) => {
      const state = outcome(data, i), at = idOf(data, i);
      return el("li", {}, el("a", { href: link(data, i), "data-id": at, "aria-current": at === current ? "true" : null },
        el("span", { class: state, text: SIGN[state], role: "img", "aria-label": SAY[state] }),
        el("span", { class: "who", text: `${word(data, "kind", i)} · update ${data.update[i]} · ${word(data, "status", i).replace("_", " ")}` }),
        el("span", { class: "num " + state, text: data.graded[i] ? brief(data.reward[i]) : "–" }),
        el("span", { class: "say", text: data.response[i].slice(0, 160).replace(/\s+/g, " ") || "(empty response)" })));
    }));
    if (!found.length) $("ro-list").append(el("li", {}, el("p", { class: "note", style: "padding: 0 .8rem", text: "No rollout matches. Widen or clear the filters." })));
    $("ro-page").textContent = `page ${whole(page + 1)} of ${whole(pages)}`;
    for (const id of ["ro-first", "ro-prev"]) $(id).disabled = page === 0;
    for (const id of ["ro-next", "ro-last"]) $(id).disabled = page >= pages - 1;
  };
  for (const [id, move] of [["ro-first", () => 0], ["ro-prev", () => page - 1], ["ro-next", () => page + 1], ["ro-last", () => Infinity]])
    $(id).addEventListener("click", () => { page = Math.min(move(), Math.ceil(found.length / PAGE) - 1); list(); });

  /* One rollout. */
  const siblings = (data, i) => {
    const group = [];
    for (let j = 0; j < data.response.length; j++)
      if (data.group[j] === data.group[i] && data.update[j] === data.update[i] && data.problem_id.at[j] === data.problem_id.at[i]) group.push(j);
    if (group.length < 2) return null;
    return el("div", {}, el("h4", { text: `The group: ${group.length} answers to this prompt, by reward` }),
      el("div", { class: "ro-group" }, ...group.map((j) => el("a", { href: link(data, j), class: outcome(data, j), "aria-current": j === i ? "true" : null,
        title: `${SAY[outcome(data, j)]}, ${data.response_tokens[j]} tokens`, text: data.graded[j] ? brief(data.reward[j]) : "?" }))));
  };
  const open = (data, i) => {
    current = idOf(data, i);
    const search = field.text.value.trim().toLowerCase(), state = outcome(data, i);
    const place = found.findIndex(([d, j]) => d === data && j === i);
    const step = (by, text) => {
      const next = place >= 0 ? found[place + by] : undefined;
      const button = el("button", { type: "button", text, "aria-label": by < 0 ? "Previous rollout" : "Next rollout" });
      button.disabled = !next;
      button.addEventListener("click", () => {
        page = Math.floor((place + by) / PAGE);
        location.hash = link(next[0], next[1]);
      });
      return button;
    };
    const close = el("button", { type: "button", class: "ro-close", text: "Close" });
    close.addEventListener("click", () => { location.hash = "#rollouts"; });
    const reason = el("p", { class: "ro-reason" }, el("b", { class: state, text: SAY[state] }), word(data, "reason", i) ? ": " + word(data, "reason", i) : "");
    detail.replaceChildren(
      el("div", { class: "ro-bar" }, el("a", { class: "id", href: link(data, i), text: current, title: "Link to this rollout" }), step(-1, "‹"), step(1, "›"), close),
      reason,
      facts([["reward", brief(data.reward[i])], ["task", brief(data.task[i])], ["language", brief(data.language[i])], ["length", brief(data.length[i])],
        ["tokens", whole(data.response_tokens[i]) + (data.truncated[i] ? ", truncated" : "")], ["turns", data.turns[i]]]),
      facts([["problem", word(data, "problem_id", i)], ["kind", word(data, "kind", i)], ["specialist", word(data, "specialist", i)], ["status", word(data, "status", i).replace("_", " ")],
        ["update", data.update[i]], ["sample", data.sample[i]], ...Object.entries(data.other).map(([key, values]) => [key, brief(values[i])])]),
      siblings(data, i) ?? "",
      el("h4", { text: "Prompt" }), marked(word(data, "prompt", i), search),
      el("h4", { text: "Response" }), marked(data.response[i], search),
      ...(data.tokens[i] ? [el("h4", { text: "Its tokens, learner against engine" }), tokens(data.tokens[i])] : [el("p", { class: "note", text: TOLD[word(data, "status", i)] ?? "" })]));
    detail.classList.add("open");
    document.body.classList.add("reading");
    detail.scrollTop = 0;
    list();
    const row = document.querySelector('#ro-list a[aria-current="true"]');
    if (row && innerWidth > 820) row.scrollIntoView({ block: "nearest" });
    if (innerWidth <= 820) detail.focus();
  };
  const shut = () => {
    if (!detail.classList.contains("open")) return;
    detail.classList.remove("open");
    document.body.classList.remove("reading");
    document.querySelector('#ro-list a[aria-current="true"]')?.focus({ preventScroll: true });
  };
  const route = async () => {
    if (!location.hash.startsWith("#rollout=")) { shut(); return; }
    const id = decodeURIComponent(location.hash.slice(9)), cut = id.lastIndexOf("/");
    const block = blocks.find((b) => b.climb === id.slice(0, cut));
    const data = block && (await load(block)), row = Number(id.slice(cut + 1));
    const i = data ? (data.index ? data.index.indexOf(row) : row) : -1;
    if (!data || !(i >= 0 && i < data.response.length)) {
      detail.replaceChildren(el("p", { class: "warn", text: `There is no rollout ${id} in this file.` }));
      return;
    }
    if (!current && field.climb.value && field.climb.value !== block.climb) { field.climb.value = block.climb; await apply(); }
    if (!current) $("rollouts").scrollIntoView();
    const place = found.findIndex(([d, j]) => d === data && j === i);
    if (place >= 0) page = Math.floor(place / PAGE);
    open(data, i);
  };
  $("ro-list").addEventListener("keydown", (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("li")?.[step]?.querySelector("a");
    if (next) { event.preventDefault(); next.focus(); }
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape" && detail.classList.contains("open") && innerWidth <= 820) location.hash = "#rollouts"; });
  let timer = 0;
  $("ro-form").addEventListener("submit", (event) => event.preventDefault());
  $("ro-form").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 180); });
  $("ro-form").addEventListener("reset", () => setTimeout(apply, 0));
  addEventListener("hashchange", route);
  let started = false;
  const start = async () => { if (!started) { started = true; await apply(); await route(); } };
  if (location.hash.startsWith("#rollout=")) start();
  else new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); start(); }
  }, { rootMargin: "400px" }).observe($("rollouts"));
})();
