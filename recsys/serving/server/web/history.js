// The counters of the server as they were, and what they say of the time between two of them.

const KEPT_SECONDS = 300;
const WINDOW_SECONDS = 10;

export class History {
  #taken = [];

  // Keeps a sample. Counters that fell are those of a server that was started anew: what was before is of no use.
  add(sample) {
    const last = this.#taken.at(-1);
    if (last && (answered(sample) < answered(last) || sample.at < last.at)) this.#taken = [];
    this.#taken.push(sample);
    while (sample.at - this.#taken[0].at > KEPT_SECONDS + WINDOW_SECONDS) this.#taken.shift();
  }

  get last() {
    return this.#taken.at(-1) ?? null;
  }

  // A point a sample but the first: what happened in the seconds before it.
  points() {
    const points = [];
    for (let place = 1; place < this.#taken.length; place += 1) {
      const now = this.#taken[place];
      let begin = place - 1;
      while (begin > 0 && now.at - this.#taken[begin - 1].at <= WINDOW_SECONDS) begin -= 1;
      points.push(between(this.#taken[begin], now));
    }
    return points.filter((point) => this.last.at - point.at <= KEPT_SECONDS);
  }
}

const sum = (values) => Object.values(values).reduce((total, value) => total + value, 0);

export function answered(sample) {
  return sum(Object.values(sample.requests).map(sum));
}

function between(before, now) {
  const seconds = now.at - before.at;
  const gained = (name) => sum(now[name]) - sum(before[name]);
  const rows = gained("rows");
  const ids = gained("ids");
  const counts = now.latency.counts.map((count, place) => count - before.latency.counts[place]);
  return {
    at: now.at,
    requests: (answered(now) - answered(before)) / seconds,
    refused: gained("refused") / seconds,
    p50: quantile(0.5, now.latency.bounds, counts),
    p99: quantile(0.99, now.latency.bounds, counts),
    prediction: rows > 0 ? gained("probability") / rows : null,
    missing: rows > 0 && now.fields > 0 ? gained("missing") / (rows * now.fields) : null,
    unseen: ids > 0 ? gained("unseen") / ids : null,
  };
}

// Of a histogram with a count below each bound, in seconds; straight within a bucket, as Prometheus has it.
export function quantile(share, bounds, counts) {
  const all = counts.at(-1);
  if (!(all > 0)) return null;
  const rank = share * all;
  const place = counts.findIndex((count) => count >= rank);
  if (place >= bounds.length) return bounds.at(-1);
  const low = place ? bounds[place - 1] : 0;
  const below = place ? counts[place - 1] : 0;
  return low + ((bounds[place] - low) * (rank - below)) / (counts[place] - below);
}
