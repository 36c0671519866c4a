"use strict";
(() => {
  const button = document.querySelector(".command button");
  if (button) {
    const code = document.querySelector(".command code");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        // A page opened from a file has no clipboard in some browsers; a selection can be copied everywhere.
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  const plots = [...document.querySelectorAll(".plot")];
  if (!plots.length) return;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none), (pointer: coarse)").matches;
  const drawn = new Set();

  // Where tiles (heat maps beside one another) go in a given width: how many in a row, and how high.
  const GAP = 72, EDGE = { l: 56, r: 76, t: 34, b: 52 };
  function tiling(plot) {
    const { tiles, aspect } = plot.dataset;
    const room = plot.clientWidth - EDGE.l - EDGE.r + GAP;
    const columns = Math.max(1, Math.min(+tiles, Math.floor(room / 260)));
    const rows = Math.ceil(tiles / columns);
    const width = room / columns - GAP, height = Math.min(Math.max(width * aspect, 90), 420);
    return {
      height: EDGE.t + EDGE.b + rows * (height + GAP) - GAP,
      margin: EDGE,
      grid: { rows, columns, pattern: "independent", xgap: GAP / (width + GAP), ygap: GAP / (height + GAP) },
    };
  }

  function size(plot) {
    if (plot.dataset.tiles) return tiling(plot);
    const height = +plot.dataset.height;
    if (plot.dataset.scene) return { height: height || Math.min(440, plot.clientWidth), margin: { l: 0, r: 0, t: 0, b: 0 } };
    return { height: height || (plot.clientWidth < 640 ? 320 : 400) };
  }

  function template(colours) {
    const style = getComputedStyle(document.documentElement);
    const [ink, muted, grid, line, paper, accent] =
      ["--ink", "--muted", "--grid", "--axis", "--paper", "--accent"].map((name) => style.getPropertyValue(name).trim());
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink };
    const axis = {
      gridcolor: grid, linecolor: line, zerolinecolor: grid, zerolinewidth: 1, showline: true, ticks: "outside",
      ticklen: 4, tickcolor: line, tickfont: { size: 12, color: muted }, title: { font: { size: 13 }, standoff: 10 },
      automargin: true, exponentformat: "power",
    };
    const side = { ...axis, showbackground: false, automargin: false };
    const bar = { thickness: 12, outlinewidth: 0, ticks: "", tickfont: { size: 12, color: muted }, exponentformat: "power" };
    const bars = {};
    for (const type of ["heatmap", "contour", "surface", "isosurface", "volume", "mesh3d"]) bars[type] = [{ colorbar: bar }];
    return {
      data: { ...bars, scatter: [{ line: { width: 2 }, marker: { size: 6 } }] },
      layout: {
        font, colorway: colours, colorscale: { sequential: "Viridis", sequentialminus: "Viridis" }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        // A finger that drags over a flat figure means to scroll the page.
        dragmode: touch ? false : "zoom",
        hoverlabel: { bgcolor: paper, bordercolor: line, font: { ...font, size: 12.5 } },
        margin: { l: 56, r: 16, t: 28, b: 48 },
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12.5 } },
        annotationdefaults: { font: { size: 13, color: ink } },
        coloraxis: { colorbar: bar },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: accent },
        xaxis: axis, yaxis: axis,
        scene: { xaxis: side, yaxis: side, zaxis: side, bgcolor: "rgba(0,0,0,0)", dragmode: "turntable",
          camera: { eye: { x: 1.45, y: 1.45, z: 1.05 }, center: { x: 0, y: 0, z: -0.1 } } },
      },
    };
  }

  async function draw(plot) {
    drawn.add(plot);
    try {
      plot.spec ??= JSON.parse(plot.nextElementSibling.textContent);
      const { data = [], layout = {}, frames } = plot.spec;
      const own = size(plot);
      plot.style.height = own.height + "px";
      await Plotly.react(plot, {
        data, frames,
        layout: {
          uirevision: "same", ...structuredClone(layout), ...own, autosize: true,
          template: template(JSON.parse(document.getElementById("colours").textContent)),
        },
        config: {
          displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
          toImageButtonOptions: { filename: plot.dataset.name, scale: 2 },
        },
      });
    } catch (error) {
      const note = document.createElement("p");
      note.className = "failure";
      note.textContent = "This figure could not be drawn: " + error.message;
      plot.style.height = "auto";
      plot.replaceChildren(note);
    }
  }

  // Browsers keep about 16 WebGL contexts alive, so a scene that is out of sight gives its own back.
  function release(plot) {
    for (const [key, scene] of Object.entries(plot.layout ?? {})) {
      if (/^scene\d*$/.test(key) && scene.camera) {
        plot.spec.layout = { ...plot.spec.layout, [key]: { ...plot.spec.layout?.[key], camera: scene.camera } };
      }
    }
    Plotly.purge(plot);
    drawn.delete(plot);
  }

  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !drawn.has(target)) draw(target);
      else if (!isIntersecting && target.dataset.scene && drawn.has(target)) release(target);
    }
  }, { rootMargin: "400px 0px" });

  for (const plot of plots) {
    plot.style.height = size(plot).height + "px";
    observer.observe(plot);
  }
  const redraw = () => drawn.forEach(draw);
  let waiting, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const plot of plots) if (!drawn.has(plot)) plot.style.height = size(plot).height + "px";
      redraw();
    }, 150);
  });
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => plots.forEach((plot) => drawn.has(plot) || draw(plot)));
})();
