// Draws the instruments and listens to their controls. Everything is redrawn for the width that there is.
(() => {
  const { data: DATA, words: W } = INSTRUMENTS;
  const said = (key, values = {}) => W[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const three = (value) => String(Number(value.toPrecision(3)));
  const unit = (value, steps) => {
    const [size, name] = steps.find(([least]) => value >= least) ?? steps[steps.length - 1];
    return `${three(value / size)} ${name}`;
  };
  const bytes = (value) => unit(value, [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]]);
  const seconds = (value) => unit(value, [[60, "min"], [1, "s"], [1e-3, "ms"], [1e-6, "µs"]]);
  const speed = (value) => unit(value, [[1e12, "Tbit/s"], [1e9, "Gbit/s"], [1e6, "Mbit/s"], [1e3, "kbit/s"]]);
  const count = (value) => unit(value, [...W["unit.large"].split(" ").map((one) => one.split("=")).map(([size, name]) => [Number(size), name]), [1, ""]]);
  const percent = (value) => `${three(100 * value)} %`;
  const signed = (value) => `${value < 0 ? "−" : "+"}${three(Math.abs(100 * value))} %`;

  const text = (x, y, words, more = "") => `<text x="${x}" y="${y}" ${more}>${words}</text>`;
  const rect = (x, y, width, height, name) =>
    `<rect x="${x}" y="${y}" width="${Math.max(0, width)}" height="${Math.max(0, height)}" class="${name}"/>`;
  const line = (x1, y1, x2, y2, name) => `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${name}"/>`;
  const bars = (values, reach, x, y, width, height, name) => values.map((value, place) => {
    const tall = (Math.min(1, Math.abs(value) / reach) * height) / 2;
    const step = width / values.length;
    return rect(x + place * step + 0.5, value < 0 ? y : y - tall, step - 1, tall, name);
  }).join("");
  const most = (values) => Math.max(...values.map(Math.abs));

  const choice = (key, values, show, start) => ({ key, values, show, start });
  const logs = (low, high, many) =>
    Array.from({ length: many }, (_, i) => low * (high / low) ** (i / (many - 1))).map((value) => Number(value.toPrecision(3)));
  const numbers = (low, high) => Array.from({ length: high - low + 1 }, (_, i) => low + i);

  const clip = {
    controls: [
      { key: "way", options: ["norm", "value"], start: "norm" },
      choice("share", numbers(1, 100), (value) => `${value} %`, 49),
    ],
    setting: ({ way, share }) => {
      const before = DATA.gradient.steps[0];
      const whole = way === "norm" ? Math.hypot(...before) : most(before);
      return { way, bound: (whole * share) / 100 };
    },
    draw: (found, { way, bound }, width) => {
      const narrow = width < 520;
      const side = narrow ? width : Math.round(0.36 * width);
      const radius = Math.min(side - 100, 190);
      const [ox, oy] = [14, radius + 34];
      const [bx, by, wide, tall] = narrow ? [0, oy + 120, width, 150] : [side + 20, 120, width - side - 20, 190];
      const turn = (found.degrees * Math.PI) / 180;
      const far = (radius * found.left) / found.norm;
      const [ax, ay] = [ox + far * Math.cos(turn), oy - far * Math.sin(turn)];
      const reach = most(found.before);
      const level = (tall / 2) * (bound / reach);
      const arc = way === "norm" ? (radius * bound) / found.norm : far;
      return {
        height: narrow ? by + 90 : Math.max(oy + 26, by + 120),
        body: `<path class="guide" d="M ${ox + arc} ${oy} A ${arc} ${arc} 0 0 0 ${ox} ${oy - arc}"/>`
          + line(ox, oy, ox + radius, oy, "before") + line(ox, oy, ax, ay, "after")
          + `<circle class="grip" cx="${ax}" cy="${ay}" r="6"/>`
          + text(ox + radius + 6, oy + 4, said("clip.gradient")) + text(ox, 16, said("clip.turned", { angle: found.degrees.toFixed(1) }))
          + text(bx, by - tall / 2 - 10, said("clip.entries"))
          + bars(found.before, reach, bx, by, wide, tall, "before") + bars(found.after, reach, bx, by, wide, tall, "after")
          + (way === "value" ? line(bx, by - level, bx + wide, by - level, "bound") + line(bx, by + level, bx + wide, by + level, "bound") : ""),
        drag: (x, y) => way === "norm" && (narrow ? y < oy + 30 : x < side)
          ? Math.hypot(x - ox, y - oy) / radius : way === "value" && (narrow ? y > oy + 30 : x > side)
            ? Math.abs(y - by) / (tall / 2) : null,
      };
    },
    values: (found, { bound }) => [
      ["clip.bound", three(bound)],
      ["clip.length", said("from.to", { from: three(found.norm), to: three(found.left) })],
      ["clip.angle", `${found.degrees.toFixed(1)}°`],
      ["clip.changed", percent(found.changed)],
    ],
  };

  const accumulate = {
    controls: [
      choice("microBatch", [1, 2, 4, 8, 16, 32], String, 2),
      choice("count", [1, 2, 4, 8, 16], String, 2),
      choice("ranks", [2, 4, 8, 16], String, 0),
    ],
    setting: (chosen) => chosen,
    draw: (found, setting, width) => {
      const parts = ["parameters", "gradients", "state", "moment"];
      const scale = (width - 4) / found.whole.total;
      const row = (memory, y, words) => {
        let x = 0;
        const boxes = parts.map((part) => {
          const box = rect(x, y + 8, memory[part] * scale - 1, 22, `part ${part}`);
          x += memory[part] * scale;
          return box;
        });
        return text(0, y, `${words}: ${bytes(memory.total)}`) + boxes.join("");
      };
      const top = 168;
      const tall = 70;
      const step = width / found.tokens.length;
      const reach = Math.max(...found.tokens);
      const lines = found.tokens.map((tokens, place) => {
        const high = (tall * tokens) / reach;
        return rect(place * step + 1, top + tall - high, step - 2, high, "after")
          + (step > 26 ? text(place * step + step / 2, top + tall + 16, tokens, 'text-anchor="middle"') : "");
      });
      return {
        height: top + tall + 24,
        body: row(found.memory, 14, said("accumulate.window", setting)) + row(found.whole, 66, said("accumulate.whole", found))
          + parts.map((part, i) => {
            const [x, y] = [(i % 2) * (width / 2), 116 + 18 * Math.floor(i / 2)];
            return rect(x, y - 9, 10, 10, `part ${part}`) + text(x + 15, y, said(`accumulate.${part}`));
          }).join("")
          + text(0, top - 8, said("accumulate.tokens")) + lines.join(""),
      };
    },
    values: (found) => [
      ["accumulate.samples", String(found.samples)],
      ["accumulate.memory", said("accumulate.memory.value", { own: bytes(found.memory.total), whole: bytes(found.whole.total) })],
      ["accumulate.time", seconds(found.seconds)],
      ["accumulate.sent", said("accumulate.sent.value", { once: bytes(found.sent), every: bytes(found.sentEvery) })],
      ["accumulate.true", three(found.perToken)],
      ["accumulate.means", `${three(found.perMicroBatch)} (${signed(found.perMicroBatch / found.perToken - 1)})`],
      ["accumulate.lines", `${three(found.perLine)} (${signed(found.perLine / found.perToken - 1)})`],
      ["accumulate.weight", said("accumulate.weight.value", { low: three(found.lightest), high: three(found.heaviest) })],
    ],
  };

  const compress = {
    controls: [
      choice("count", numbers(1, 64), (value) => said("compress.count.value", { count: value, share: percent(value / 64) }), 7),
      choice("bits", [2, 4, 8, 32], (value) => said("compress.bits.value", { bits: value }), 3),
      { key: "feedback", check: true, start: true },
      choice("step", [1, 2, 3, 4, 5], String, 4),
    ],
    setting: (chosen) => chosen,
    draw: (steps, { step }, width) => {
      const found = steps[step - 1];
      const reach = Math.max(...steps.map((one) => most(one.wanted)));
      const tall = 76;
      return {
        height: 3 * (tall + 24),
        body: ["wanted", "sent", "residual"].map((part, i) => {
          const y = i * (tall + 24) + 20;
          return text(0, y - 5, said(`compress.${part}`)) + line(0, y + tall / 2, width, y + tall / 2, "axis")
            + bars(found[part], reach, 0, y + tall / 2, width, tall, part);
        }).join(""),
      };
    },
    values: (steps, { step }) => [
      ["compress.bytes", said("compress.bytes.value", { own: steps[step - 1].nbytes, all: 256, factor: three(steps[step - 1].factor) })],
      ["compress.error", percent(steps[step - 1].error)],
      ["compress.left", three(steps[step - 1].left)],
      ["compress.errors", steps.map((one) => percent(one.error)).join(", ")],
    ],
  };

  const link = {
    controls: [
      choice("parameters", logs(1e6, 1e10, 41), count, 21),
      choice("ranks", [2, 4, 8, 16, 32, 64], String, 1),
      choice("backward", logs(0.01, 10, 31), seconds, 15),
      choice("bitsPerSecond", logs(1e7, 1e12, 51), speed, 20),
      choice("faster", [1, 10, 100, 1000], (value) => `${value} ×`, 1),
    ],
    setting: (chosen) => ({ ...chosen, latency: 5e-5 }),
    draw: (rows, { backward }, width) => {
      const longest = Math.max(...rows.map((row) => row.seconds));
      const scale = width / longest;
      const best = Math.min(...rows.map((row) => row.seconds));
      const compute = 1.5 * backward;
      return {
        height: rows.length * 54 + 44,
        body: rows.map((row, i) => {
          const y = i * 54 + 16;
          const coding = row.coding ?? 0;
          return text(0, y, `${said(`link.${row.name}`)}: ${seconds(row.seconds)}${row.seconds === best ? ` ◀ ${said("link.best")}` : ""}`, row.seconds === best ? 'class="best"' : "")
            + rect(0, y + 8, compute * scale, 20, "part compute") + rect(compute * scale, y + 8, coding * scale, 20, "part coding")
            + rect((compute + coding) * scale, y + 8, (row.seconds - compute - coding) * scale, 20, "part network");
        }).join("") + ["compute", "coding", "network"].map((part, i) =>
          rect((i * width) / 3, rows.length * 54 + 16, 10, 10, `part ${part}`)
            + text((i * width) / 3 + 15, rows.length * 54 + 25, said(`link.${part}`))).join(""),
      };
    },
    values: (rows) => rows.slice(1).map((row) => [
      `link.${row.name}`,
      said(row.breakEven > 0 ? "link.even" : "link.never", { speed: speed(row.breakEven || 1), sent: bytes(row.nbytes), all: bytes(rows[0].nbytes) }),
    ]),
  };

  const KINDS = { clip, accumulate, compress, link };
  const mount = (root) => {
    const name = root.dataset.instrument;
    const kind = KINDS[name];
    const chosen = {};
    const [controls, picture, values] = ["settings", "picture", "values"].map((one) => root.querySelector(`.${one}`));
    let drawn = null;

    const update = () => {
      const setting = kind.setting(chosen);
      const found = InstrumentModel[name](setting, DATA);
      const width = Math.max(260, Math.floor(picture.clientWidth || 640));
      drawn = kind.draw(found, setting, width);
      const facts = kind.values(found, setting).map(([key, value]) => [said(key), value]);
      const words = facts.map(([label, value]) => `${label}: ${value}`).join("; ");
      picture.innerHTML = `<svg role="img" width="${width}" height="${drawn.height}" viewBox="0 0 ${width} ${drawn.height}">${drawn.body}</svg>`;
      picture.firstElementChild.setAttribute("aria-label", words);
      values.innerHTML = facts.map(([label, value]) => `<div><dt>${label}</dt><dd>${value}</dd></div>`).join("");
    };

    const setters = {};
    kind.controls.forEach((control) => {
      const { key } = control;
      const id = `${root.id}-${key}`;
      const box = document.createElement("div");
      box.className = "control";
      if (control.options) {
        box.innerHTML = `<fieldset><legend>${said(`${name}.${key}`)}</legend>${control.options.map((option) =>
          `<label><input type="radio" name="${id}" value="${option}"${option === control.start ? " checked" : ""}> ${said(`${name}.${key}.${option}`)}</label>`).join(" ")}</fieldset>`;
        box.addEventListener("change", (event) => { chosen[key] = event.target.value; update(); });
        chosen[key] = control.start;
      } else if (control.check) {
        box.innerHTML = `<label><input type="checkbox" id="${id}"${control.start ? " checked" : ""}> ${said(`${name}.${key}`)}</label>`;
        box.addEventListener("change", (event) => { chosen[key] = event.target.checked; update(); });
        chosen[key] = control.start;
      } else {
        box.innerHTML = `<label for="${id}">${said(`${name}.${key}`)} <output for="${id}"></output></label>
<input type="range" id="${id}" min="0" max="${control.values.length - 1}" step="1" value="${control.start}">`;
        const [output, input] = [box.querySelector("output"), box.querySelector("input")];
        setters[key] = (place) => {
          input.value = Math.max(0, Math.min(control.values.length - 1, Math.round(place)));
          chosen[key] = control.values[Number(input.value)];
          output.textContent = control.show(chosen[key]);
          input.setAttribute("aria-valuetext", output.textContent);
        };
        input.addEventListener("input", () => { setters[key](Number(input.value)); update(); });
        setters[key](control.start);
      }
      controls.append(box);
    });

    const drag = (event) => {
      const box = picture.firstElementChild.getBoundingClientRect();
      const shown = box.width / Number(picture.firstElementChild.getAttribute("width")); // slides are scaled
      const share = drawn.drag?.((event.clientX - box.left) / shown, (event.clientY - box.top) / shown);
      if (share === null || share === undefined) return;
      event.preventDefault();
      setters.share(100 * share - 1);
      update();
    };
    picture.addEventListener("pointerdown", (event) => {
      if (!drawn.drag) return;
      picture.setPointerCapture(event.pointerId);
      drag(event);
    });
    picture.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
    new ResizeObserver(() => {
      if (picture.clientWidth && Math.floor(picture.clientWidth) !== Number(picture.firstElementChild.getAttribute("width"))) update();
    }).observe(picture);
    update();
  };
  document.querySelectorAll("[data-instrument]").forEach(mount);
})();
