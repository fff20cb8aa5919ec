(() => {
  const { $, el, whole, brief, chart, marked, facts, tokens } = hillclimb;
  const EVERY = 3000;
  const SIGN = { pass: "✓", fail: "✗", none: "?" };
  const SAY = { pass: "passed", fail: "failed", none: "not graded" };
  const outcome = (row) => (!row.graded ? "none" : row.task > 0 ? "pass" : "fail");
  const shown = {};
  let open = null, asked = new URLSearchParams(location.search).get("climb") ?? "";

  /* Only what has changed is drawn again; what the reader is at waits. */
  const busy = (node) => node.matches(":hover, :focus-within") && innerWidth > 820;
  const put = (id, html) => {
    if (shown[id] === html) return;
    shown[id] = html;
    $(id).innerHTML = html;
  };
  const figures = (list) => {
    const box = $("figures");
    while (box.children.length > list.length) box.lastElementChild.remove();
    list.forEach((html, i) => {
      const old = box.children[i];
      if (shown["figure" + i] === html && old) return;
      if (old && busy(old)) return;
      const made = document.createElement("template");
      made.innerHTML = html;
      const figure = made.content.firstElementChild;
      if (old) old.replaceWith(figure); else box.append(figure);
      if (figure.dataset.chart) chart(figure);
      shown["figure" + i] = html;
    });
  };
  const options = (names, chosen) => {
    const key = names.join(" ");
    if (shown.names !== key) {
      shown.names = key;
      $("pick").replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
    }
    if (document.activeElement !== $("pick")) $("pick").value = chosen;
  };
  const idOf = (row) => `${row.update}/${row.group}/${row.sample}`;
  const list = (climb, rows) => {
    const key = climb + JSON.stringify(rows);
    if (shown.rows === key || $("ro-list").contains(document.activeElement)) return;
    shown.rows = key;
    $("ro-count").textContent = rows.length ? `${whole(rows.length)} of update ${rows[0].update}, those that a step learns from first.` : "None yet.";
    $("ro-list").replaceChildren(...rows.map((row) => {
      const state = outcome(row);
      const link = el("button", { type: "button", class: "ro-open", "aria-current": open === climb + idOf(row) ? "true" : null },
        el("span", { class: state, text: SIGN[state], role: "img", "aria-label": SAY[state] }),
        el("span", { class: "who", text: `${row.kind} · group ${row.group} · ${row.status.replace("_", " ")}` }),
        el("span", { class: "num " + state, text: row.graded ? brief(row.reward) : "–" }),
        el("span", { class: "say", text: row.response.replace(/\s+/g, " ") || "(empty response)" }));
      link.addEventListener("click", () => show(climb, row, link));
      return el("li", {}, link);
    }));
  };

  /* One rollout. */
  const show = async (climb, row, link) => {
    open = climb + idOf(row);
    const mine = open;
    for (const other of document.querySelectorAll("#ro-list [aria-current]")) other.removeAttribute("aria-current");
    link.setAttribute("aria-current", "true");
    const query = new URLSearchParams({ climb, update: row.update, group: row.group, sample: row.sample });
    const answer = await fetch("rollout?" + query).catch(() => null);
    if (open !== mine) return;
    const detail = $("ro-detail");
    const close = el("button", { type: "button", class: "ro-close", text: "Close" });
    close.addEventListener("click", shut);
    const bar = el("div", { class: "ro-bar" }, el("span", { class: "id", text: `update ${row.update}, group ${row.group}, sample ${row.sample}` }), close);
    detail.classList.add("open");
    document.body.classList.add("reading");
    if (!answer || !answer.ok) {
      detail.replaceChildren(bar, el("p", { class: "warn", text: answer ? "This rollout is gone: the climb went back to a checkpoint." : "The server does not answer." }));
      return;
    }
    const told = await answer.json(), state = outcome(told);
    detail.replaceChildren(bar,
      el("p", { class: "ro-reason" }, el("b", { class: state, text: SAY[state] }), told.reason ? ": " + told.reason : ""),
      facts([["reward", brief(told.reward)], ["task", brief(told.task)], ["language", brief(told.language)], ["length", brief(told.length)],
        ["tokens", whole(told.response_tokens) + (told.truncated ? ", truncated" : "")], ["turns", told.turns], ["weights", told.version], ["problem", told.problem_id], ["canary", told.canary || "none"]]),
      el("h4", { text: "Prompt" }), marked(told.prompt, ""),
      ...(told.view ? [el("h4", { text: "Response, learner against engine" }), tokens(told.view)]
        : [el("h4", { text: "Response" }), marked(told.response, ""), el("p", { class: "note", text: "No step has learnt from it, or its tokens are beyond what a step keeps: there is no gap to show." })]));
    detail.scrollTop = 0;
    if (innerWidth <= 820) detail.focus();
  };
  const shut = () => {
    open = null;
    $("ro-detail").classList.remove("open");
    document.body.classList.remove("reading");
    document.querySelector("#ro-list [aria-current]")?.focus({ preventScroll: true });
  };
  addEventListener("keydown", (event) => { if (event.key === "Escape" && innerWidth <= 820 && open) shut(); });

  const away = (sentence) => { $("away").hidden = !sentence; if ($("away").textContent !== sentence) $("away").textContent = sentence; };
  const look = async () => {
    try {
      const answer = await fetch("state?" + new URLSearchParams({ climb: asked }));
      if (!answer.ok) { away(await answer.text()); return; }
      const told = await answer.json();
      away("");
      if (!told.climb) return;
      options(told.climbs, told.climb);
      $("climb").textContent = told.climb;
      for (const id of ["state", "numbers", "alarms"]) put(id, told[id]);
      figures(told.figures);
      list(told.climb, told.rollouts);
    } catch {
      away("The server of this page does not answer; what is shown is old. It is asked again.");
    }
  };
  let timer = 0;
  const loop = async () => {
    clearTimeout(timer);
    if (!document.hidden) await look();
    clearTimeout(timer);
    timer = setTimeout(loop, EVERY);
  };
  $("pick").addEventListener("change", () => { asked = $("pick").value; history.replaceState(null, "", "?" + new URLSearchParams({ climb: asked })); loop(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) loop(); });
  loop();
})();
