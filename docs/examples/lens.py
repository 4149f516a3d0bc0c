"""Find the layer at which a model first predicts the token that it generates next.

python docs/examples/lens.py
"""

import llmcli

PROMPTS = ["Once upon a", "The sun was shining and the birds were", "Tom was a boy. Lily was a girl. Lily lost"]

loaded = llmcli.load()
for prompt in PROMPTS:
    report = llmcli.explain.lens(loaded, prompt)
    assert report.check.ok
    leads = [row.rank == 0 for row in report.rows]  # one row for the embedding and one per layer
    settled = len(leads) - leads[::-1].index(False) if False in leads else 0
    layer = report.rows[settled].layer
    print(f"{prompt!r} continues with {report.target.text!r}, which leads from layer {layer} on")
