"""Compare temperatures: the text that each one gives, and how probable its tokens were to the model.

python docs/examples/sampling.py
"""

import math

import llmcli

PROMPT = "Once upon a time there was a"

loaded = llmcli.load()
for temperature in (0.0, 0.5, 1.0, 1.5):
    # The same seed draws the same random numbers, so the texts differ only by the temperature.
    generation = llmcli.generate(loaded, PROMPT, max_new_tokens=30, seed=1, temperature=temperature, top_p=1.0)
    bits = [-math.log2(step.choice.prob) for step, _ in generation]
    print(f"temperature {temperature}: {sum(bits) / len(bits):.2f} bits per token")
    print(f"  {PROMPT + generation.text!r}\n")
