// Sentence vectors in the browser, by transformers.js from ./vendor: nothing is asked of another server.
import { env, pipeline } from "./vendor/transformers.min.js";

const here = (path) => new URL(path, import.meta.url).href;

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL(here("./models/")).pathname; // of a whole address it would ask another way
env.useBrowserCache = false; // the browser's own HTTP cache is enough, and never gives a model that was made anew
env.backends.onnx.wasm.wasmPaths = {
  mjs: here("./vendor/ort-wasm-simd-threaded.asyncify.mjs"),
  wasm: here("./vendor/ort-wasm-simd-threaded.asyncify.wasm"),
};

/** A model of ./models as a function of a list of sentences: unit vectors, one Float32Array each. */
export async function load(model, dtype) {
  const run = await pipeline("feature-extraction", model, { device: "wasm", dtype });
  return async (sentences) => {
    const output = await run(sentences, { pooling: "mean", normalize: true });
    const width = output.dims[1];
    return sentences.map((_, row) => output.data.slice(row * width, (row + 1) * width));
  };
}

/** The sentences whose vectors are nearest to the query's, best first, as [cosine, sentence]. */
export function nearest(query, vectors, sentences, count) {
  const cosines = vectors.map((vector) => vector.reduce((sum, value, i) => sum + value * query[i], 0));
  const order = cosines.map((_, i) => i).sort((a, b) => cosines[b] - cosines[a]);
  return order.slice(0, count).map((i) => [cosines[i], sentences[i]]);
}

/** Bytes that came over the network so far, by what they are for; none for what the HTTP cache had. */
export function downloaded() {
  const found = { model: 0, tokenizer: 0, runtime: 0 };
  for (const entry of performance.getEntriesByType("resource")) {
    const { pathname } = new URL(entry.name);
    const kind = pathname.endsWith(".onnx")
      ? "model"
      : pathname.includes("/models/")
        ? "tokenizer"
        : pathname.includes("/vendor/")
          ? "runtime"
          : null;
    if (kind) found[kind] += entry.transferSize;
  }
  return found;
}
