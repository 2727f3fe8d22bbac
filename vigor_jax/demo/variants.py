"""The variants of the method that `compare` runs, one entry each; a new one is a new entry."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from vigor_jax.config import Stage
from vigor_jax.demo.preferences import Source
from vigor_jax.errors import InputError

Config = TypeVar("Config")
SharedRecords: TypeAlias = Literal[
    "shared",
    "holistic_reward",
    "erring_detector",
    "agreeing_detectors",
    "verifier_verdicts",
    "judged_claims",
    "claims_and_crops",
    "erring_boxes",
    "agreeing_boxes",
    "asked_random",
    "asked_uncertain",
    "asked_disagreement",
    "asked_coverage",
    "asked_random_1000",
]


class Variant(NamedTuple):
    """One way to a tuned model.

    Attributes:
      name: on the command line, in the results, and of its directory.
      label: in the table.
      description: one line.
      overrides: options of the demo's config that differ, `section.key` → value.
      stages: what is run after what the variants share.
      judged: whose candidates and verdicts it takes: "shared"; "holistic_reward", where the reward model judges whole
        descriptions; "erring_detector", where the detector errs, and "agreeing_detectors", where two that err agree
        (`erring.py`); "verifier_verdicts", where the verifier of FiSAO judges; "judged_claims", where claims are judged
        by the detector's boxes, "claims_and_crops", where a CLIP judges colors by crops of them, and "erring_boxes"
        and "agreeing_boxes", where claims are judged by the boxes of detectors that err; "asked_...", where the reward
        model has learned from a part of the annotations (`picking.py`); or None.
        One without a selection takes the reward model only.
      rounds: how often.
      preferences: which of `preferences.write_preferences` it learns from; None for its own, or none.
    """

    name: str
    label: str
    description: str
    overrides: Mapping[str, Any]
    stages: tuple[Stage, ...] = ("select", "sft", "export", "evaluate")
    judged: SharedRecords | None = "shared"
    rounds: int = 1
    preferences: Source | None = None


DETECTOR = {"score.streams": ("detector",)}
BOTH = {"score.streams": ("detector", "reward_model")}
CLAIMS = {"score.streams": ("detector", "claims")}
CLAIMS_AND_CROPS = {
    "score.streams": ("detector", "claims", "clip_attributes"),
    "claims.kinds": ("number", "place", "relation"),
}
BOTH_AND_CLAIMS = {"score.streams": ("detector", "claims", "reward_model")}
REPAIR = {"select.refine": "repair"}
UNREFINED = {"select.refine": "none"}
REWARD_MODEL = {"score.streams": ("reward_model",)} | UNREFINED
OF_DESCRIPTIONS = {"train_reward.per": "description", "reward_model.per": "description"}
RANDOM = {"select.strategy": "random"}
ERRING: SharedRecords = "erring_detector"
AGREEING: SharedRecords = "agreeing_detectors"
# Scores that are as far from both means as a third of their distance are neither rewarded nor punished.
VERIFIER = {"score.streams": ("clip",), "clip.margin": 25.0, "clip.margin_sign": "-"}
PPO: tuple[Stage, ...] = ("ppo", "export", "evaluate")
DPO: tuple[Stage, ...] = ("dpo", "export", "evaluate")
SENTENCES = {"pair.kind": "sentences", "dpo.epochs": 1}
PAPER = {"score.streams": ("clip",)}
OURS = {"ppo.kl_factor": 0.03, "ppo.kl_target": 0.0, "ppo.token_rewards.repetition": 0.05}
OF_CAPTIONS = {"clip.per": "caption"}
# name, label, description, overrides
VARIANTS = (
    Variant(
        "base",
        "base",
        "the model before, without any training",
        {"evaluate.base": True},
        stages=("evaluate",),
        judged=None,
    ),
    Variant(
        "random",
        "control: random candidate",
        "trained on one of its candidates, whichever",
        DETECTOR | RANDOM | UNREFINED,
    ),
    Variant(
        "random_drop",
        "control: random, sentences dropped at random to the length of All",
        "as random, with as many sentences dropped as in all, whichever they are",
        BOTH | {"select.strategy": "random_drop"},
    ),
    Variant(
        "random_refine",
        "random candidate + refinement",
        "as random, without the sentences with something that the detector does not find",
        DETECTOR | RANDOM,
    ),
    Variant("rm", "RM, sentence by sentence", "the reward model chooses by its sentences", REWARD_MODEL),
    Variant(
        "holistic",
        "RM, holistic",
        "a reward model of whole descriptions chooses",
        REWARD_MODEL | OF_DESCRIPTIONS,
        judged="holistic_reward",
    ),
    Variant("at", "AT", "the detector chooses; sentences with something that it does not find are dropped", DETECTOR),
    Variant("all", "All", "detector and reward model choose by the paper's rule; sentences are dropped as in at", BOTH),
    Variant(
        "all_balanced",
        "All, balanced",
        "as all, by the rule that also counts what is right",
        BOTH | {"select.fusion.rule": "balanced"},
    ),
    Variant("all_unrefined", "All without refinement", "as all, without dropping sentences", BOTH | UNREFINED),
    Variant(
        "all_two_rounds", "All, two rounds", "as all, and again from the model that came out of it", BOTH, rounds=2
    ),
    Variant(
        "verifier",
        "verifier: best of 5",
        "control without PPO: FiSAO's verifier chooses; sentences with something that it punishes are dropped",
        VERIFIER,
        judged="verifier_verdicts",
    ),
    Variant("fisao", "FiSAO", "PPO, a reward for each word, the paper's numbers", PAPER, PPO, None),
    Variant("fisao_margin_5", "FiSAO, margin 5", "as fisao, margin 5", PAPER | {"clip.margin": 5.0}, PPO, None),
    Variant("fisao_margin_20", "FiSAO, margin 20", "as fisao, margin 20", PAPER | {"clip.margin": 20.0}, PPO, None),
    Variant(
        "fisao_sentence",
        "FiSAO, one score a caption",
        "as fisao, but the whole caption's score is the reward of its last token",
        PAPER | OF_CAPTIONS,
        PPO,
        None,
    ),
    Variant(
        "fisao_ours",
        "FiSAO, our settings",
        "as fisao, with the margin's sign turned, less KL, and a small penalty for a word that comes again",
        VERIFIER | OURS,
        PPO,
        None,
    ),
    Variant(
        "fisao_ours_sentence",
        "FiSAO, our settings, one score a caption",
        "as fisao_ours, but the whole caption's score is the reward of its last token",
        VERIFIER | OURS | OF_CAPTIONS | {"clip.margin": 0.0},
        PPO,
        None,
    ),
    Variant(
        "vigor_ppo",
        "ViGoR with PPO",
        "PPO, rewards of detector and reward model; a thing named again costs what it earned; KL as in fisao_ours",
        BOTH | OURS | {"ppo.token_rewards.repetition": 1.0},
        PPO,
    ),
    Variant(
        "vigor_ppo_whole",
        "ViGoR with PPO, whole captions",
        "as vigor_ppo, but a caption's tokens share the sum of its rewards, compared with the other captions (RLOO)",
        BOTH | OURS | {"ppo.token_rewards.repetition": 1.0, "ppo.baseline": "rloo"},
        PPO,
    ),
    Variant(
        "vigor_ppo_repeats",
        "ViGoR with PPO, repeats cost little",
        "as vigor_ppo, with the penalty for repeats of fisao_ours",
        BOTH | OURS,
        PPO,
    ),
    Variant(
        "dpo",
        "DPO on own pairs",
        "the refined choice of all against the worst candidate of like length",
        BOTH | {"pair.match_lengths": 0.8},
        ("select", "pair", *DPO),
    ),
    Variant(
        "sentence_dpo",
        "DPO on sentences in context",
        "next sentences that the detector finds right against those that it finds wrong, as SENTINEL does",
        DETECTOR | SENTENCES,
        ("pair", *DPO),
        None,
    ),
    Variant(
        "sentence_dpo_claims",
        "DPO on sentences in context, + claims",
        "as sentence_dpo, with claims judged by the detector's boxes, too; fewer alternatives, as more are wrong",
        CLAIMS | SENTENCES | {"pair.sampling.num_candidates": 5, "pair.per_step": 1},
        ("pair", *DPO),
        None,
    ),
    Variant(
        "dpo_unmatched",
        "DPO on own pairs of any length",
        "control: as dpo, whatever the lengths",
        BOTH,
        ("select", "pair", *DPO),
    ),
    Variant(
        "dpo_random",
        "control: DPO, ratings at random",
        "as silkie, with ratings at random",
        {},
        DPO,
        preferences="random",
    ),
    Variant(
        "silkie",
        "DPO on a model's ratings (Silkie)",
        "all ranked pairs of the candidates, as a model that knows the truth rates them, with mistakes",
        {},
        DPO,
        preferences="rated",
    ),
    Variant(
        "llava_rlhf",
        "PPO on people's preferences (LLaVA-RLHF)",
        "a reward model of captions that people put in order, one number a caption, and PPO on it; KL as in fisao_ours",
        {"score.streams": ("preference_reward",)} | OURS,
        ("train_preference_reward", *PPO),
        preferences="people",
    ),
    Variant(
        "povid",
        "DPO on answers made worse (POVID)",
        "true captions against the same with mistakes",
        {},
        DPO,
        None,
        preferences="worse",
    ),
    Variant(
        "povid_noise",
        "the same, with noise (POVID)",
        "as povid, half of the loss with what the model says under a noisy image as the worse answer",
        {"dpo.pair_factor": 0.5, "dpo.image_factor": 0.5, "dpo.image_term": "noised"},
        DPO,
        None,
        preferences="worse",
    ),
    Variant(
        "claims",
        "AT + claims",
        "detector and its boxes' judgment of claims choose; sentences with a wrong claim are dropped, too",
        CLAIMS,
        judged="judged_claims",
    ),
    Variant(
        "claims_repair",
        "AT + claims, repaired",
        "as claims, but wrong numbers, places and colors are replaced by the right ones",
        CLAIMS | REPAIR,
        judged="judged_claims",
    ),
    Variant(
        "claims_clip",
        "AT + claims, repaired, colors by a CLIP",
        "as claims_repair, but a CLIP says which color the crop of a box shows, and not the detector",
        CLAIMS_AND_CROPS | REPAIR,
        judged="claims_and_crops",
    ),
    Variant(
        "claims_repair_boxes",
        "AT + claims, repaired, boxes in the text",
        "as claims_repair, with the box of each thing behind its first mention",
        CLAIMS | REPAIR | {"select.boxes": "text", "evaluate.captions.max_new_tokens": 192},
        judged="judged_claims",
    ),
    Variant(
        "claims_two_rounds",
        "AT + claims, two rounds",
        "as claims, and again from the model that came out of it",
        CLAIMS,
        judged="judged_claims",
        rounds=2,
    ),
    Variant(
        "claims_repair_two_rounds",
        "AT + claims, repaired, two rounds",
        "as claims_repair, and again from the model that came out of it",
        CLAIMS | REPAIR,
        judged="judged_claims",
        rounds=2,
    ),
    Variant(
        "all_claims",
        "All + claims",
        "detector, claims and reward model choose; dropped as in claims",
        BOTH_AND_CLAIMS,
        judged="judged_claims",
    ),
    Variant(
        "all_claims_repair",
        "All + claims, repaired",
        "as all_claims, repaired as in claims_repair",
        BOTH_AND_CLAIMS | REPAIR,
        judged="judged_claims",
    ),
    Variant(
        "claims_erring",
        "AT + claims, detector that errs",
        "as claims, with errors in the detector's answers, boxes and colors",
        CLAIMS,
        judged="erring_boxes",
    ),
    Variant(
        "claims_repair_erring",
        "AT + claims, repaired, detector that errs",
        "as claims_repair, with errors in the detector's answers, boxes and colors",
        CLAIMS | REPAIR,
        judged="erring_boxes",
    ),
    Variant(
        "claims_repair_consensus",
        "AT + claims, repaired, two detectors that err",
        "as claims_repair_erring, with the two detectors of at_consensus",
        CLAIMS | REPAIR,
        judged="agreeing_boxes",
    ),
    Variant(
        "at_erring", "AT, detector that errs", "as at, with errors in the detector's answers", DETECTOR, judged=ERRING
    ),
    Variant(
        "all_erring", "All, detector that errs", "as all, with errors in the detector's answers", BOTH, judged=ERRING
    ),
    Variant(
        "at_consensus",
        "AT, two detectors that err",
        "as at_erring, where a second detector errs otherwise, and what they do not agree on does not count",
        DETECTOR,
        judged=AGREEING,
    ),
    Variant(
        "all_consensus",
        "All, two detectors that err",
        "as all_erring, with the two detectors of at_consensus",
        BOTH,
        judged=AGREEING,
    ),
    Variant(
        "rm_random",
        "RM of 250 captions, random",
        "as rm, the reward model learns from 250 annotated captions, drawn at random",
        REWARD_MODEL,
        judged="asked_random",
    ),
    Variant(
        "rm_uncertain",
        "RM of 250 captions, uncertain",
        "as rm_random, but a reward model of 125 of them picks the others: those of which it is least sure",
        REWARD_MODEL,
        judged="asked_uncertain",
    ),
    Variant(
        "rm_disagreement",
        "RM of 250 captions, disagreement",
        "as rm_uncertain, but those where the detector disagrees with it most",
        REWARD_MODEL,
        judged="asked_disagreement",
    ),
    Variant(
        "rm_coverage",
        "RM of 250 captions, coverage",
        "as rm_uncertain, but those with the kinds of error, as it and the detector see them, that were picked least",
        REWARD_MODEL,
        judged="asked_coverage",
    ),
    Variant(
        "rm_random_1000",
        "RM of 1,000 captions, random",
        "as rm_random, with 1,000 captions",
        REWARD_MODEL,
        judged="asked_random_1000",
    ),
)


def choose(names: Sequence[str]) -> list[Variant]:
    """Variants by their names, each once.

    Raises:
      InputError: there is no variant of that name, or no name.
    """
    known = {variant.name: variant for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"{unknown[0]!r} is no variant" if unknown else "expected names with commas between them, got none"
        raise InputError(f"--variants: {wrong}; known ones are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def replaced(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A config with other values.

    Args:
      config: a dataclass of values and dataclasses.
      overrides: `section.key` → value.
    """
    for key, value in overrides.items():
        config = _replaced(config, key.split("."), value)
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, value) if rest else value})
