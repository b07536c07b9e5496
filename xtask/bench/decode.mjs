// What decoding takes with llama.cpp, as one line of JSON: `cargo xtask bench decode` runs it.
//
// node decode.mjs MODEL.gguf THREADS BATCH PREFILL REPEAT CONTEXT...
//
// Weights and cache are f32, flash attention as llama.cpp chooses. Each context is read by one sequence and copied to the others;
// then a step is made and not counted, and the median of REPEAT more printed; PREFILL tokens from an empty cache, up to three
// times. Memory is the most that was resident from start to end.

import {readFileSync, rmSync} from "node:fs";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [path, ...numbers] = process.argv.slice(2);
const [threads, batch, prefill, repeat, ...contexts] = numbers.map(Number);

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: threads});
const model = await llama.loadModel({modelPath: path});
const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;

// A fixed sequence of tokens that are no special ones.
let state = 1;
const token = () => (state = (state * 48271) % 2147483647) % (vocabulary - 100) + 100;
const tokens = (count) => Array.from({length: count}, token);

const measured = [];
const note = (what, count, passTokens, seconds) => {
    const sorted = seconds.toSorted((a, b) => a - b), middle = sorted.length >> 1;
    const pass_s = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    measured.push({what, tokens: count, batch_size: batch, pass_s, tokens_per_s: passTokens / pass_s});
};
const timed = async (work) => {
    const begun = performance.now();
    await work();
    return (performance.now() - begun) / 1000;
};

const room = Math.max(prefill, ...contexts) + repeat + 2;
const context = await model.createContext({
    sequences: batch,
    contextSize: room,
    batchSize: Math.min(room, Math.max(512, batch)),
    threads,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32"
});
const sequences = Array.from({length: batch}, () => context.getSequence());
// The likeliest next token is asked for, so that logits are computed, those of the last token alone.
const next = async (sequence, read) => {
    const likeliest = sequence.evaluate(read, {temperature: 0});
    await likeliest.next();
    await likeliest.return();
};
const together = (count) => Promise.all(sequences.map((sequence) => next(sequence, tokens(count))));

const reading = [];
for (let i = 0; i < Math.min(repeat, 3); i++) {
    await Promise.all(sequences.map((sequence) => sequence.clearHistory()));
    reading.push(await timed(() => together(prefill)));
}
note("prefill", prefill, batch * prefill, reading);

const [first, ...others] = sequences;
const copy = join(tmpdir(), `decode-${process.pid}.state`);
for (const count of contexts) {
    await Promise.all(sequences.map((sequence) => sequence.clearHistory()));
    await first.evaluateWithoutGeneratingNewTokens(tokens(count));
    if (others.length > 0) {
        await first.saveStateToFile(copy);
        for (const sequence of others) await sequence.loadStateFromFile(copy, {acceptRisk: true});
        rmSync(copy);
    }
    const seconds = [];
    for (let i = 0; i <= repeat; i++) seconds.push(await timed(() => together(1)));
    note("decode", count, batch, seconds.slice(1));
}

const resident = readFileSync("/proc/self/status", "utf8").match(/VmHWM:\s+(\d+)/)[1];
console.log(JSON.stringify({peak_bytes: Number(resident) * 1024, measured}));
process.exit(0);
