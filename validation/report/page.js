(() => {
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("golden-theme"); } catch { return null; } })();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = theme => { root.dataset.theme = theme; };
  apply(stored || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", e => { if (!stored) apply(e.matches ? "dark" : "light"); });
  document.getElementById("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    apply(theme);
    try { localStorage.setItem("golden-theme", theme); } catch { /* a sandboxed frame */ }
  });

  const reveal = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();

  const series = JSON.parse(document.getElementById("series").textContent);
  const tip = document.getElementById("tip");
  const hide = () => {
    tip.style.display = "none";
    document.querySelectorAll(".cross").forEach(c => { c.style.display = "none"; });
  };
  const show = v => v === null || v === undefined ? "missing" : String(v);
  document.querySelectorAll("figure.chart").forEach(figure => {
    const data = series[Number(figure.dataset.series)];
    const first = data.steps[0], last = data.steps[data.steps.length - 1];
    figure.querySelectorAll(".plot").forEach(plot => {
      plot.addEventListener("pointermove", event => {
        const box = plot.getBoundingClientRect();
        const at = first + (last - first) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
        let best = 0;
        data.steps.forEach((s, i) => { if (Math.abs(s - at) < Math.abs(data.steps[best] - at)) best = i; });
        hide();
        const percent = last > first ? 100 * (data.steps[best] - first) / (last - first) : 50;
        figure.querySelectorAll(".cross").forEach(c => { c.style.left = percent + "%"; c.style.display = "block"; });
        const lines = ["step " + data.steps[best], "golden  " + show(data.golden[best]), "actual  " + show(data.actual[best])];
        if (data.tolerance[best] !== null) lines.push("allowed ±" + data.tolerance[best]);
        tip.textContent = lines.join("\n");
        tip.style.display = "block";
        const width = tip.offsetWidth;
        tip.style.left = Math.min(innerWidth - width - 8, event.clientX + 14) + "px";
        tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 12) + "px";
      });
      plot.addEventListener("pointerleave", hide);
    });
  });
})();
