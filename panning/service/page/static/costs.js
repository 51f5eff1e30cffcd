// What a job costs, in words.

export function inBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, bytes)) / 10)));
  return `${(bytes / 1024 ** power).toLocaleString("en", { maximumFractionDigits: power ? 1 : 0 })} ${units[power]}`;
}

export function inEpochs(cost) {
  return Number(cost.dense_epochs).toLocaleString("en", { maximumFractionDigits: 1 });
}

export function inWords(cost) {
  const parts = [`${cost.n_parameters.toLocaleString("en")} parameters`, `${inEpochs(cost)} dense epochs`];
  if (cost.memory_bytes) parts.push(`${inBytes(cost.memory_bytes)} of memory a process`);
  if (cost.disk_bytes) parts.push(`${inBytes(cost.disk_bytes)} on disk`);
  return `Estimated, at most: ${parts.join(", ")}.`;
}
