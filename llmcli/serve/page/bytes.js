// Bytes of tokens as text. A token may end within a character.

const SYMBOLS = { " ": "·", "\n": "⏎", "\t": "⇥" };
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;

// The text without control characters, which could hide or reorder the text around them.
export function safe(text) {
  return text.replace(CONTROLS, (char) => {
    const code = char.codePointAt(0);
    return code < 0x20 ? String.fromCodePoint(0x2400 + code) : `<${code.toString(16).toUpperCase().padStart(2, "0")}>`;
  });
}

// A token on one line, with signs for spaces and with incomplete characters as bytes: "·the", "<E2 80>".
export function label(bytes) {
  let shown = "";
  let broken = [];
  for (let at = 0; at < bytes.length; ) {
    const size = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4;
    const char = complete(bytes.slice(at, at + size));
    if (char === null) {
      broken.push(bytes[at]);
      at += 1;
      continue;
    }
    shown += hex(broken) + (SYMBOLS[char] ?? safe(char));
    broken = [];
    at += size;
  }
  return shown + hex(broken);
}

// The label of a token, or its id if it has no bytes.
export const nameOf = ({ id, bytes }) => label(bytes) || `token ${id}`;

function hex(bytes) {
  const digits = bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0"));
  return digits.length ? `<${digits.join(" ")}>` : "";
}

function complete(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

// The text of several tokens, with U+FFFD for characters that stay incomplete.
export function textOf(tokens) {
  const bytes = tokens.flatMap((token) => token.bytes);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
}

// The text that each token completes, in order: call it once for each.
export function textReader() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (token) => decoder.decode(new Uint8Array(token.bytes), { stream: true });
}
