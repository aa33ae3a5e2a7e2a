// Axes of the curves: which numbers stand at them, and how numbers are written.

const many = store.runs.length > 1;

function written(value, form) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (form === "percent") return `${Number((100 * value).toPrecision(4))}%`;
  if (form === "bytes") return `${Number((value / 2 ** 30).toPrecision(5))} GiB`;
  if (form === "count") return number(Number(value.toPrecision(6)));
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(3).replace("e+", "e");
  return (Number(value.toPrecision(5)) + 0).toLocaleString("en", { maximumFractionDigits: 8 });
}

// The short form beside an axis.
function label(value, form) {
  if (form === "percent") return `${Number((100 * value).toPrecision(3))}%`;
  if (form === "bytes") return `${Number((value / 2 ** 30).toPrecision(3))}G`;
  const size = Math.abs(value);
  if (size >= 1e4) {
    const [unit, much] = size >= 1e9 ? ["G", 1e9] : size >= 1e6 ? ["M", 1e6] : ["k", 1e3];
    return `${Number((value / much).toPrecision(4))}${unit}`;
  }
  if (size !== 0 && size < 1e-3) return value.toExponential().replace("e+", "e").replace(/\.?0+e/, "e").replace(/(\.\d\d)\d+e/, "$1e");
  return `${Number(value.toPrecision(4))}`;
}

// Even numbers between two, about so many; with whole ones alone for steps.
function evenTicks(low, high, count, whole) {
  const raw = (high - low) / Math.max(count, 1) || 1, power = 10 ** Math.floor(Math.log10(raw));
  let step = power * [1, 2, 2.5, 5, 10].find((n) => n * power >= raw * 0.999);
  if (whole) step = Math.max(1, Math.ceil(step));
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n += 1) ticks.push(Number((n * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const parts = decades > count ? [1] : decades > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const part of parts) {
      const tick = Number((part * 10 ** power).toPrecision(6));
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  const each = Math.ceil(ticks.length / Math.max(count, 2));
  const few = ticks.filter((_, n) => n % each === 0);
  return few.length > 1 ? few : evenTicks(low, high, count);
}

// From values to a place in [0, 1].
function scaled(low, high, isLog) {
  if (isLog) {
    const from = Math.log(low), range = Math.log(high) - from || 1;
    return (value) => (Math.log(value) - from) / range;
  }
  return (value) => (value - low) / (high - low || 1);
}

// Where a value stands, or would, in ascending ones.
function place(values, wanted) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearest(values, wanted) {
  const after = place(values, wanted);
  if (after === 0) return 0;
  if (after === values.length) return after - 1;
  return wanted - values[after - 1] <= values[after] - wanted ? after - 1 : after;
}

// Each value as the mean of those around it: what is thrown about by chance lies down.
function smoothed(values, reach) {
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, n) => {
    const around = Math.min(reach, n, values.length - 1 - n);
    return (sums[n + around + 1] - sums[n - around]) / (2 * around + 1);
  });
}
