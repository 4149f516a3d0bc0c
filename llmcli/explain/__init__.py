"""Views that explain what a model does: ``explain.lens(loaded, text)`` and the like.

Each view is a function named after its command. It takes a ``LoadedModel`` and a text (or token ids) and returns a
report: a frozen dataclass of plain numbers that carries its own check. ``llmcli.render`` draws reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.explain.attention.position_encoding import Answer as Answer
    from llmcli.explain.attention.position_encoding import PositionReport as PositionReport
    from llmcli.explain.attention.position_encoding import position as position
    from llmcli.explain.attention.query_key_value import HeadReport as HeadReport
    from llmcli.explain.attention.query_key_value import KeyMatch as KeyMatch
    from llmcli.explain.attention.query_key_value import match_keys as match_keys
    from llmcli.explain.attention.weights import AttendedToken as AttendedToken
    from llmcli.explain.attention.weights import AttendReport as AttendReport
    from llmcli.explain.attention.weights import AttentionPattern as AttentionPattern
    from llmcli.explain.attention.weights import PatternRow as PatternRow
    from llmcli.explain.attention.weights import attend as attend
    from llmcli.explain.attention.weights import attention_pattern as attention_pattern
    from llmcli.explain.attribution import Contribution as Contribution
    from llmcli.explain.attribution import SourceContribution as SourceContribution
    from llmcli.explain.attribution import StrongestPart as StrongestPart
    from llmcli.explain.attribution import WhyReport as WhyReport
    from llmcli.explain.attribution import why as why
    from llmcli.explain.continuations import BranchReport as BranchReport
    from llmcli.explain.continuations import Node as Node
    from llmcli.explain.continuations import branch as branch
    from llmcli.explain.decision import ChoiceRow as ChoiceRow
    from llmcli.explain.decision import DecideReport as DecideReport
    from llmcli.explain.decision import decide as decide
    from llmcli.explain.embeddings import Neighbour as Neighbour
    from llmcli.explain.embeddings import NeighboursReport as NeighboursReport
    from llmcli.explain.embeddings import Term as Term
    from llmcli.explain.embeddings import neighbours as neighbours
    from llmcli.explain.guided_tour import TourReport as TourReport
    from llmcli.explain.guided_tour import tour as tour
    from llmcli.explain.interventions.ablation import ablate as ablate
    from llmcli.explain.interventions.head_kinds import BestHead as BestHead
    from llmcli.explain.interventions.head_kinds import HeadScores as HeadScores
    from llmcli.explain.interventions.head_kinds import HeadsReport as HeadsReport
    from llmcli.explain.interventions.head_kinds import ScoredHead as ScoredHead
    from llmcli.explain.interventions.head_kinds import heads as heads
    from llmcli.explain.interventions.patching import PatchedLayer as PatchedLayer
    from llmcli.explain.interventions.patching import PatchedPart as PatchedPart
    from llmcli.explain.interventions.patching import PatchedPath as PatchedPath
    from llmcli.explain.interventions.patching import PatchReport as PatchReport
    from llmcli.explain.interventions.patching import patch as patch
    from llmcli.explain.interventions.steering import SteerLayer as SteerLayer
    from llmcli.explain.interventions.steering import SteerReport as SteerReport
    from llmcli.explain.interventions.steering import steer as steer
    from llmcli.explain.interventions.steering import steered as steered
    from llmcli.explain.lenses.fitted_lens import FittedLens as FittedLens
    from llmcli.explain.lenses.fitted_lens import LensKind as LensKind
    from llmcli.explain.lenses.fitted_lens import read_lens as read_lens
    from llmcli.explain.lenses.fitted_lens import write_lens as write_lens
    from llmcli.explain.lenses.lens_fitting import FitLensReport as FitLensReport
    from llmcli.explain.lenses.lens_fitting import FittedLayer as FittedLayer
    from llmcli.explain.lenses.lens_fitting import fit_lens as fit_lens
    from llmcli.explain.lenses.logit_lens import LensReport as LensReport
    from llmcli.explain.lenses.logit_lens import LensRow as LensRow
    from llmcli.explain.lenses.logit_lens import lens as lens
    from llmcli.explain.models.architecture import Architecture as Architecture
    from llmcli.explain.models.architecture import Rotary as Rotary
    from llmcli.explain.models.comparison import ComparedToken as ComparedToken
    from llmcli.explain.models.comparison import CompareReport as CompareReport
    from llmcli.explain.models.comparison import compare as compare
    from llmcli.explain.models.divergence import CompareSummary as CompareSummary
    from llmcli.explain.models.divergence import Divergences as Divergences
    from llmcli.explain.models.divergence import LargestDivergence as LargestDivergence
    from llmcli.explain.models.divergence import compare_summary as compare_summary
    from llmcli.explain.models.inspection import InspectReport as InspectReport
    from llmcli.explain.models.inspection import inspect as inspect
    from llmcli.explain.models.inspection import inspect_folder as inspect_folder
    from llmcli.explain.report import Alternative as Alternative
    from llmcli.explain.report import Check as Check
    from llmcli.explain.report import Claim as Claim
    from llmcli.explain.report import GeneratedToken as GeneratedToken
    from llmcli.explain.report import Report as Report
    from llmcli.explain.report import ScoredToken as ScoredToken
    from llmcli.explain.report import ScoreReport as ScoreReport
    from llmcli.explain.report import VocabEntry as VocabEntry
    from llmcli.explain.report import Windows as Windows
    from llmcli.explain.report import vocab_entry as vocab_entry
    from llmcli.explain.sampling_step import Candidate as Candidate
    from llmcli.explain.sampling_step import StageReport as StageReport
    from llmcli.explain.sampling_step import StepReport as StepReport
    from llmcli.explain.sampling_step import TemperatureColumn as TemperatureColumn
    from llmcli.explain.sampling_step import default_sampler as default_sampler
    from llmcli.explain.sampling_step import generated_token_of as generated_token_of
    from llmcli.explain.sampling_step import step as step
    from llmcli.explain.sampling_step import step_report as step_report
    from llmcli.explain.scoring import score as score
    from llmcli.explain.selection import find_token as find_token
    from llmcli.explain.tokens.bpe_merges import MergesReport as MergesReport
    from llmcli.explain.tokens.bpe_merges import WordMerges as WordMerges
    from llmcli.explain.tokens.bpe_merges import merges as merges
    from llmcli.explain.tokens.chat_tokens import ChatMessage as ChatMessage
    from llmcli.explain.tokens.chat_tokens import ChatToken as ChatToken
    from llmcli.explain.tokens.chat_tokens import ChatTokenization as ChatTokenization
    from llmcli.explain.tokens.chat_tokens import Lookalike as Lookalike
    from llmcli.explain.tokens.chat_tokens import tokenize_chat as tokenize_chat
    from llmcli.explain.tokens.tokenization import Tokenization as Tokenization
    from llmcli.explain.tokens.tokenization import tokenize as tokenize
    from llmcli.explain.verification.proof import Divergence as Divergence
    from llmcli.explain.verification.proof import Proof as Proof
    from llmcli.explain.verification.view import VerifyReport as VerifyReport
    from llmcli.explain.verification.view import verify as verify
    from llmcli.explain.walkthrough import Control as Control
    from llmcli.explain.walkthrough import ExplainedChoice as ExplainedChoice
    from llmcli.explain.walkthrough import HeadMaps as HeadMaps
    from llmcli.explain.walkthrough import Walkthrough as Walkthrough
    from llmcli.explain.walkthrough import explain_token as explain_token
    from llmcli.explain.walkthrough import walk_through as walk_through

__all__ = [
    "Alternative",
    "Answer",
    "Architecture",
    "AttendReport",
    "AttendedToken",
    "AttentionPattern",
    "BestHead",
    "BranchReport",
    "Candidate",
    "ChatMessage",
    "ChatToken",
    "ChatTokenization",
    "Check",
    "ChoiceRow",
    "Claim",
    "CompareReport",
    "CompareSummary",
    "ComparedToken",
    "Contribution",
    "Control",
    "DecideReport",
    "Divergence",
    "Divergences",
    "ExplainedChoice",
    "FitLensReport",
    "FittedLayer",
    "FittedLens",
    "GeneratedToken",
    "HeadMaps",
    "HeadReport",
    "HeadScores",
    "HeadsReport",
    "InspectReport",
    "KeyMatch",
    "LargestDivergence",
    "LensKind",
    "LensReport",
    "LensRow",
    "Lookalike",
    "MergesReport",
    "Neighbour",
    "NeighboursReport",
    "Node",
    "PatchReport",
    "PatchedLayer",
    "PatchedPart",
    "PatchedPath",
    "PatternRow",
    "PositionReport",
    "Proof",
    "Report",
    "Rotary",
    "ScoreReport",
    "ScoredHead",
    "ScoredToken",
    "SourceContribution",
    "StageReport",
    "SteerLayer",
    "SteerReport",
    "StepReport",
    "StrongestPart",
    "TemperatureColumn",
    "Term",
    "Tokenization",
    "TourReport",
    "VerifyReport",
    "VocabEntry",
    "Walkthrough",
    "WhyReport",
    "Windows",
    "WordMerges",
    "ablate",
    "attend",
    "attention_pattern",
    "branch",
    "compare",
    "compare_summary",
    "decide",
    "default_sampler",
    "explain_token",
    "find_token",
    "fit_lens",
    "generated_token_of",
    "heads",
    "inspect",
    "inspect_folder",
    "lens",
    "match_keys",
    "merges",
    "neighbours",
    "patch",
    "position",
    "read_lens",
    "score",
    "steer",
    "steered",
    "step",
    "step_report",
    "tokenize",
    "tokenize_chat",
    "tour",
    "verify",
    "vocab_entry",
    "walk_through",
    "why",
    "write_lens",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "SourceContribution": "attribution",
        "Contribution": "attribution",
        "Proof": "verification.proof",
        "Divergence": "verification.proof",
        "Answer": "attention.position_encoding",
        "WordMerges": "tokens.bpe_merges",
        "TemperatureColumn": "sampling_step",
        "StageReport": "sampling_step",
        "Candidate": "sampling_step",
        "ScoredToken": "report",
        "Term": "embeddings",
        "Neighbour": "embeddings",
        "LensRow": "lenses.logit_lens",
        "fit_lens": "lenses.lens_fitting",
        "FittedLayer": "lenses.lens_fitting",
        "FitLensReport": "lenses.lens_fitting",
        "write_lens": "lenses.fitted_lens",
        "read_lens": "lenses.fitted_lens",
        "LensKind": "lenses.fitted_lens",
        "FittedLens": "lenses.fitted_lens",
        "Rotary": "models.architecture",
        "Architecture": "models.architecture",
        "ComparedToken": "models.comparison",
        "Node": "continuations",
        "PatternRow": "attention.weights",
        "AttendedToken": "attention.weights",
        "HeadReport": "attention.query_key_value",
        "KeyMatch": "attention.query_key_value",
        "match_keys": "attention.query_key_value",
        "Alternative": "report",
        "AttendReport": "attention.weights",
        "AttentionPattern": "attention.weights",
        "BranchReport": "continuations",
        "ChatMessage": "tokens.chat_tokens",
        "ChatToken": "tokens.chat_tokens",
        "ChatTokenization": "tokens.chat_tokens",
        "Lookalike": "tokens.chat_tokens",
        "tokenize_chat": "tokens.chat_tokens",
        "Check": "report",
        "Claim": "report",
        "CompareReport": "models.comparison",
        "GeneratedToken": "report",
        "InspectReport": "models.inspection",
        "LensReport": "lenses.logit_lens",
        "MergesReport": "tokens.bpe_merges",
        "NeighboursReport": "embeddings",
        "PositionReport": "attention.position_encoding",
        "Report": "report",
        "ScoreReport": "report",
        "StepReport": "sampling_step",
        "Tokenization": "tokens.tokenization",
        "TourReport": "guided_tour",
        "VerifyReport": "verification.view",
        "VocabEntry": "report",
        "Windows": "report",
        "vocab_entry": "report",
        "StrongestPart": "attribution",
        "WhyReport": "attribution",
        "ablate": "interventions.ablation",
        "SteerLayer": "interventions.steering",
        "SteerReport": "interventions.steering",
        "steer": "interventions.steering",
        "steered": "interventions.steering",
        "PatchReport": "interventions.patching",
        "PatchedLayer": "interventions.patching",
        "PatchedPart": "interventions.patching",
        "PatchedPath": "interventions.patching",
        "patch": "interventions.patching",
        "BestHead": "interventions.head_kinds",
        "HeadScores": "interventions.head_kinds",
        "HeadsReport": "interventions.head_kinds",
        "ScoredHead": "interventions.head_kinds",
        "heads": "interventions.head_kinds",
        "attend": "attention.weights",
        "attention_pattern": "attention.weights",
        "branch": "continuations",
        "compare": "models.comparison",
        "compare_summary": "models.divergence",
        "CompareSummary": "models.divergence",
        "Divergences": "models.divergence",
        "LargestDivergence": "models.divergence",
        "default_sampler": "sampling_step",
        "find_token": "selection",
        "generated_token_of": "sampling_step",
        "inspect": "models.inspection",
        "inspect_folder": "models.inspection",
        "lens": "lenses.logit_lens",
        "merges": "tokens.bpe_merges",
        "neighbours": "embeddings",
        "position": "attention.position_encoding",
        "score": "scoring",
        "step": "sampling_step",
        "step_report": "sampling_step",
        "tokenize": "tokens.tokenization",
        "tour": "guided_tour",
        "verify": "verification.view",
        "why": "attribution",
        "ExplainedChoice": "walkthrough",
        "Control": "walkthrough",
        "HeadMaps": "walkthrough",
        "Walkthrough": "walkthrough",
        "explain_token": "walkthrough",
        "walk_through": "walkthrough",
        "ChoiceRow": "decision",
        "DecideReport": "decision",
        "decide": "decision",
    },
)
