// A GGUF file as stock llama.cpp runs it, through node-llama-cpp.
//
//     SHRINK_NODE_MODULES=FOLDER/node_modules node tests/engines/llama.mjs FILE.gguf WINDOWS PROMPT TOKENS TEXT
//
// WINDOWS is a JSON file of windows of token ids, TEXT a file. Prints one JSON object: the perplexity over the windows, the ids that
// llama.cpp makes of PROMPT and of TEXT, the greedy continuation of PROMPT, and what is said of the KV cache. SHRINK_CACHE=f32: its type.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [file, ids, prompt, tokens, text] = process.argv.slice(2);
const library = createRequire(process.env.SHRINK_NODE_MODULES + "/").resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(library));

const cache = [];
const logger = (_, message) => {
  if (/KV buffer size|size =.*K \(/.test(message)) cache.push(message.trim());
};
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.debug, logger, maxThreads: 2 });
const model = await llama.loadModel({ modelPath: file });
const windows = JSON.parse(readFileSync(ids, "utf8"));
const contextSize = Math.max(...windows.map((window) => window.length), 128) + Number(tokens);
const exact = process.env.SHRINK_CACHE === "f32" ? { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" } : {};
const context = await model.createContext({ contextSize, batchSize: contextSize, threads: 2, ...exact });
const sequence = context.getSequence();

let total = 0;
let scored = 0;
for (const window of windows) {
  await sequence.clearHistory();
  const last = window.length - 1;
  const input = window.map((token, i) => (i < last ? [token, { generateNext: { logits: true } }] : token));
  await sequence.controlledEvaluate(input, {
    onTokenResult(index, { next }) {
      const logits = [...next.logits.values()];
      const most = logits.reduce((a, b) => Math.max(a, b));
      const sum = logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
      total += most + Math.log(sum) - next.logits.get(window[index + 1]);
      scored += 1;
    },
  });
}

await sequence.clearHistory();
const given = model.tokenize(prompt, false, "trimLeadingSpace");
const greedy = [];
for await (const token of sequence.evaluate(given, { temperature: 0, yieldEogToken: true })) {
  greedy.push(token);
  if (greedy.length === Number(tokens)) break;
}
const read = (text) => model.tokenize(readFileSync(text, "utf8"));
console.log(
  JSON.stringify({
    perplexity: Math.exp(total / scored),
    scored,
    prompt: given,
    tokens: greedy,
    text: text === undefined ? [] : read(text),
    cache,
  }),
);
process.exit(0);
