"""The view of generated tokens: how sure was the model of each, and what else might have stood there?"""

from __future__ import annotations

from llmcli.explain.rivals import Rival, TokenReport
from llmcli.generation.distribution import entropy, probabilities
from llmcli.generation.steps import Step
from llmcli.text.tokenizer import Tokenizer


def token_report(step: Step, tokenizer: Tokenizer, rivals: int) -> TokenReport:
    """What ``generate --json`` and ``--probs`` tell of a step, with its ``rivals`` most probable tokens."""
    probs = probabilities(step.logits)
    logprob = float(step.logits.log_softmax(dim=-1)[step.token])
    order = probs.sort(descending=True, stable=True).indices[:rivals].tolist()
    return TokenReport(
        index=step.index,
        id=step.token,
        text=tokenizer.token_text(step.token),
        bytes=tokenizer.token_bytes(step.token),
        logprob=logprob,
        prob=step.choice.prob,
        final_prob=step.choice.final_prob,
        rank=step.choice.rank,
        entropy=entropy(probs),
        u=step.choice.u,
        top=tuple(Rival(id, tokenizer.token_text(id), tokenizer.token_bytes(id), float(probs[id])) for id in order),
    )
