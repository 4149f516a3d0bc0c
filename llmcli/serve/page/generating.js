// Every text comes about in one way: the model continues the ids of the conversation and of the reply's tokens so far.

import { contentOf } from "./conversation.js";
import { ask, stream } from "./server.js";

export const RIVALS = 10; // listed for each token

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

// Find the ids before a reply, and those that end it.
export async function readPrompt(model, system, before, reply, signal) {
  const messages = before.map((turn) => ({ role: turn.role, content: contentOf(turn) }));
  if (system) messages.unshift({ role: "system", content: system });
  const text = model.chat ? { messages } : { content: before.map(contentOf).join("") };
  const { tokens, generated = [], stop_token_ids } = await ask("/tokenize", { model: model.id, ...text }, signal);
  reply.prompt = tokens;
  reply.generated = generated;
  reply.stops = stop_token_ids;
}

// Add tokens to a reply until it ends; `added` is called after each.
export async function extend(model, reply, options, seed, added, signal) {
  reply.runs.push({ from: reply.tokens.length, seed, options });
  reply.ended = "";
  const prompt = [...reply.prompt, ...reply.tokens.map((token) => token.id)];
  const generated = [...reply.generated, [reply.prompt.length, prompt.length]];
  const body = { ...options, model: model.id, prompt, generated, seed, stop_token_ids: reply.stops, logprobs: RIVALS };
  for await (const chunk of stream("/v1/completions", body, signal)) {
    signal.throwIfAborted();
    const [choice] = chunk.choices;
    reply.ended = choice.finish_reason ?? "";
    for (const entry of choice.logprobs?.content ?? []) {
      const token = { ...tokenOf(entry), end: reply.stops.includes(entry.id) };
      reply.tokens.push(token);
      added(token);
    }
  }
}

function tokenOf({ id, bytes, logprob, rank, top_logprobs }) {
  const top = top_logprobs.map((rival) => ({ id: rival.id, bytes: rival.bytes, p: Math.exp(rival.logprob) }));
  return { id, bytes, p: Math.exp(logprob), rank, top };
}
