// Every text is generated in the same way: the model continues the ids of the conversation and of the reply so far.

import { contentOf } from "./conversation.js";
import { ask, stream } from "./server.js";
import { thoughtsOf } from "./thoughts.js";

export const RIVALS = 10; // listed for each token

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

// Find the ids before a reply, and those that end it.
export async function readPrompt(model, { system, think }, before, reply, signal) {
  const messages = before.map(message);
  if (system) messages.unshift({ role: "system", content: system });
  const switched = model.thinking && think ? { chat_template_kwargs: { enable_thinking: think === "on" } } : {};
  const text = model.chat ? { messages, ...switched } : { content: before.map(contentOf).join("") };
  const { tokens, generated_spans = [], thinking, stop_token_ids } = await ask("/tokenize", { model: model.id, ...text }, signal);
  reply.prompt = tokens;
  reply.generated = generated_spans;
  reply.thinking = thinking ?? null;
  reply.stops = stop_token_ids;
}

// Add tokens to a reply until it ends; `added` is called after each.
export async function extend(model, reply, options, seed, added, signal) {
  reply.runs.push({ from: reply.tokens.length, seed, options });
  reply.ended = "";
  const prompt = [...reply.prompt, ...reply.tokens.map((token) => token.id)];
  const generated_spans = [...reply.generated, [reply.prompt.length, prompt.length]];
  const body = { ...options, model: model.id, prompt, generated_spans, seed, stop_token_ids: reply.stops, logprobs: RIVALS };
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

function message(turn) {
  const thoughts = turn.role === "user" ? "" : thoughtsOf(turn);
  return { role: turn.role, content: contentOf(turn), ...(thoughts && { reasoning_content: thoughts }) };
}

function tokenOf({ id, bytes, logprob, rank, top_logprobs }) {
  const top = top_logprobs.map((rival) => ({ id: rival.id, bytes: rival.bytes, p: Math.exp(rival.logprob) }));
  return { id, bytes, p: Math.exp(logprob), rank, top };
}
