// What the instruments compute. Pure functions of a setting and of the stored data; the tests hold them to the library.
const InstrumentModel = (() => {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const length = (values) => Math.sqrt(sum(values.map((value) => value * value)));
  const dot = (a, b) => sum(a.map((value, place) => value * b[place]));

  // By norm: g min(1, c / |g|). By value: each entry cut at c and -c.
  const clip = ({ way, bound }, { gradient }) => {
    const before = gradient.steps[0];
    const norm = length(before);
    const after = way === "norm"
      ? before.map((value) => value * Math.min(1, bound / norm))
      : before.map((value) => Math.min(bound, Math.max(-bound, value)));
    const left = length(after);
    const cosine = left > 0 ? Math.min(1, dot(before, after) / (norm * left)) : 1;
    const changed = before.filter((value, place) => value !== after[place]).length / before.length;
    return { before, after, norm, left, cosine, degrees: (Math.acos(cosine) * 180) / Math.PI, changed };
  };

  // tightgrad_lab/planning/estimate.py on one device, in float32, without compression.
  const memoryOf = (microBatch, { memory }) => {
    const held = 4 * sum(memory.numels);
    const state = Math.round(held * memory.state_nbytes);
    const activations = microBatch >= memory.samples
      ? (memory.nbytes * microBatch) / memory.samples
      : memory.one_nbytes + ((memory.nbytes - memory.one_nbytes) * (microBatch - 1)) / (memory.samples - 1);
    const stepped = memory.steps_all ? held : 4 * Math.max(...memory.numels);
    const moment = Math.max(Math.round(activations), Math.round(stepped * memory.step_nbytes));
    return { parameters: held, gradients: held, state, moment, total: 2 * held + state + moment };
  };

  const allReduce = (nbytes, ranks) => Math.ceil((2 * (ranks - 1) * nbytes) / ranks);

  const accumulate = ({ microBatch, count, ranks }, data) => {
    const { memory } = data;
    const window = Array.from({ length: count }, (_, place) =>
      data.lines.slice(place * microBatch, (place + 1) * microBatch));
    const tokens = window.map((lines) => sum(lines.map((line) => line[0])));
    const losses = window.map((lines, place) => sum(lines.map((line) => line[0] * line[1])) / tokens[place]);
    const total = sum(tokens);
    const perToken = sum(losses.map((loss, place) => loss * tokens[place])) / total;
    const perMicroBatch = sum(losses) / count;
    const every = window.flat();
    const perLine = sum(every.map((line) => line[1])) / every.length;
    const weights = tokens.map((own) => total / (count * own)); // of a token under loss / K, over its fair share
    const sent = allReduce(4 * sum(memory.numels), ranks);
    return {
      samples: microBatch * count,
      memory: memoryOf(microBatch, data),
      whole: memoryOf(microBatch * count, data),
      seconds: count * (memory.seconds_per_micro_batch + microBatch * memory.seconds_per_sample)
        + memory.seconds_per_step,
      sent, sentEvery: count * sent, tokens, perToken, perMicroBatch, perLine,
      heaviest: Math.max(...weights), lightest: Math.min(...weights),
    };
  };

  const even = (value) => { // to the nearest integer, halves to the even one, as torch rounds
    const low = Math.floor(value);
    const over = value - low;
    return over > 0.5 || (over === 0.5 && low % 2 !== 0) ? low + 1 : low;
  };
  const blocks = (values, bits) => { // codecs.IntBlock(bits, block_size=64): one block, float32
    const levels = 2 ** (bits - 1) - 1;
    const scale = Math.fround(Math.max(...values.map(Math.abs)) / levels);
    if (scale === 0) return values.map(() => 0);
    const codes = values.map((value) => Math.max(-levels, Math.min(levels, even(Math.fround(value / scale)))));
    return codes.map((code) => Math.fround(code * scale));
  };
  const packed = (count, bits) => Math.ceil((count * bits) / 8);
  const valueBytes = (count, bits) => (bits === 32 ? 4 * count : packed(count, bits) + 4);
  const indexBytes = (numel, count) => { // Elias and Fano's positions: codecs/bits/packing.py
    const low = Math.floor(Math.log2(Math.floor(numel / count)));
    return packed(count, low) + packed(count + ((numel - 1) >> low) + 1, 1);
  };

  // codecs.TopK(count / 64, values=IntBlock(bits)), or all entries if that takes no more bytes.
  const encode = (values, count, bits) => {
    const numel = values.length;
    if (count === numel) return { sent: bits === 32 ? values : blocks(values, bits), nbytes: valueBytes(numel, bits) };
    const nbytes = indexBytes(numel, count) + valueBytes(count, bits);
    if (nbytes > 4 * numel) return { sent: values, nbytes: 4 * numel };
    const places = values.map((_, place) => place)
      .sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, count).sort((a, b) => a - b);
    const kept = places.map((place) => values[place]);
    const codes = bits === 32 ? kept : blocks(kept, bits);
    const sent = values.map(() => 0);
    places.forEach((place, i) => { sent[place] = codes[i]; });
    return { sent, nbytes };
  };

  const compress = ({ count, bits, feedback }, { gradient }) => {
    let residual = gradient.steps[0].map(() => 0);
    const meant = residual.slice();
    const arrived = residual.slice();
    return gradient.steps.map((step) => {
      const wanted = step.map((value, place) => Math.fround(value + (feedback ? residual[place] : 0)));
      const { sent, nbytes } = encode(wanted, count, bits);
      residual = wanted.map((value, place) => Math.fround(value - sent[place]));
      step.forEach((value, place) => { meant[place] += value; arrived[place] += sent[place]; });
      const error = length(meant.map((value, place) => value - arrived[place])) / length(meant);
      return { wanted, sent, residual, nbytes, factor: (4 * step.length) / nbytes, error, left: length(residual) };
    });
  };

  // docs/cost-model.md: hops alpha + bytes / beta.
  const HOPS = { all_reduce: (ranks) => 2 * (ranks - 1), all_gather: (ranks) => ranks - 1, all_to_all: () => 1 };
  const callSeconds = (operation, nbytes, { ranks, bitsPerSecond, latency }) =>
    HOPS[operation](ranks) * latency + (8 * nbytes) / bitsPerSecond;

  const TENSORS = 24; // of equal size
  const ddpBuckets = (sizes) => {
    const buckets = [0];
    for (const size of sizes) {
      if (buckets[buckets.length - 1] >= (buckets.length === 1 ? 2 ** 20 : 25 * 2 ** 20)) buckets.push(0);
      buckets[buckets.length - 1] += size;
    }
    return buckets;
  };
  const dense = (setting) => {
    const { parameters, ranks, backward } = setting;
    const each = 4 * Math.floor(parameters / TENSORS);
    let [end, ready] = [0, 0];
    for (const bucket of ddpBuckets(Array(TENSORS).fill(each))) {
      ready += (backward * bucket) / (TENSORS * each);
      end = Math.max(end, ready) + callSeconds("all_reduce", allReduce(bucket, ranks), setting);
    }
    return backward / 2 + Math.max(end, backward);
  };

  const PAYLOAD = { bf16: 2, int8: 1 + 4 / 256, top1: 0.01 * (1 + 4 / 256 + (6 + 1 + 100 / 64) / 8) }; // bytes for each parameter
  const calls = (name, parameters, ranks) => {
    const payload = PAYLOAD[name] * parameters;
    if (name === "top1") return [["all_gather", Math.round((ranks - 1) * payload)]];
    const part = Math.round(((ranks - 1) * payload) / ranks);
    return [["all_to_all", part], ["all_gather", part]];
  };
  const compressed = (path, setting) => {
    const { parameters, ranks, backward, faster } = setting;
    const coding = (parameters * (path.seconds + path.seconds_per_rank * ranks)) / faster;
    const network = sum(calls(path.name, parameters, ranks).map(([name, nbytes]) => callSeconds(name, nbytes, setting)));
    return { coding, network, seconds: 1.5 * backward + coding + network };
  };

  const [SLOWEST, FASTEST] = [1e6, 1e13];
  const breakEven = (path, setting) => { // the link at which it takes as long as sending everything
    const gain = (bitsPerSecond) => {
      const there = { ...setting, bitsPerSecond };
      return dense(there) - compressed(path, there).seconds;
    };
    if (gain(SLOWEST) <= 0) return 0;
    let [low, high] = [Math.log(SLOWEST), Math.log(FASTEST)];
    for (let turn = 0; turn < 60; turn += 1) {
      const middle = (low + high) / 2;
      if (gain(Math.exp(middle)) > 0) low = middle; else high = middle;
    }
    return Math.exp(low);
  };
  const link = (setting, { paths }) => [
    { name: "dense", seconds: dense(setting), nbytes: allReduce(4 * TENSORS * Math.floor(setting.parameters / TENSORS), setting.ranks) },
    ...paths.map((path) => ({
      name: path.name,
      ...compressed(path, setting),
      nbytes: sum(calls(path.name, setting.parameters, setting.ranks).map((call) => call[1])),
      breakEven: breakEven(path, setting),
    })),
  ];

  return { clip, accumulate, compress, link };
})();
