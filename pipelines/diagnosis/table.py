"""The table of detectors, and how a run is examined by all of them. D21 to D24 watch served traffic and are not here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines.diagnosis import anyrun, onpolicy, preferences
from pipelines.diagnosis.finding import Finding, Hit, Method, Record

ON_POLICY: tuple[Method, ...] = ("on_policy",)
POLICIES: tuple[Method, ...] = ("on_policy", "offline")
EVERY: tuple[Method, ...] = ("on_policy", "offline", "reward", "sft")


@dataclass(frozen=True)
class Detector:
    """A row of the table. ``window``: steps that its rule looks at; ``warmup``: steps at the start that it leaves out;
    ``limit`` with its origin."""

    id: str
    signal: str
    find: Callable[[Record], list[Hit]]
    methods: tuple[Method, ...]
    window: int
    limit: str
    causes: tuple[str, ...]
    remedy: str
    warmup: int = 0


RATE = "the learning rate is too high"
HACKED = "the reward pays for it, and the reward model has seen no such answers"

DETECTORS: tuple[Detector, ...] = (
    Detector("D1", "numbers that are not finite", anyrun.non_finite, EVERY, 1, "one", (
        "the reward returned NaN or infinity for some prompts", RATE, "bf16 lost the numbers' range"),
        "look at the reward on the step's prompts; lower learning_rate; precision: float32"),
    Detector("D2", "loss or gradient spike", anyrun.spike, EVERY, 1,
        "mean + 6 sd of the last 128 steps (OLMo-core), and 5 x the mean", (
        "a batch of outliers: very long answers, or scores far from the others", RATE, "max_grad_norm is too large"),
        "look at the batch; lower max_grad_norm or learning_rate; set score_clip", anyrun.SPIKE_LEAST),
    Detector("D3", "update KL", onpolicy.update_kl, ON_POLICY, 1, "1.5 x target 0.01 nats a token (Spinning Up)", (
        RATE, "too many epochs on the same answers", "scores are not normalised"),
        "lower learning_rate or ppo_epochs; set target_update_kl"),
    Detector("D4", "KL to the reference", onpolicy.reference_kl, ON_POLICY, 1,
        "10 nats a sequence (TRL); 2 x kl_target for 3 of 5; 5 x kl_target", (
        "beta is too small for the size of the rewards", RATE, HACKED),
        "raise beta or set kl_target; lower learning_rate; read answers of the last steps"),
    Detector("D5", "answers of another distribution", onpolicy.other_distribution, ON_POLICY, 3,
        "KL < 0 by 2 SE (TRL), tokens' surprise off their entropy by 4 SE; in 3 of 5", (
        "answers come from another distribution than the one that is scored: top_k, top_p, repetition_penalty or min_new_tokens",
        "sampling and scoring differ in temperature or precision", "padding or EOS tokens are scored as part of the answer"),
        "sample with top_k 0, top_p 1, one temperature in all passes; compare log-probabilities of sampling and of one pass"),
    Detector("D6", "probability ratio", onpolicy.ratio, ON_POLICY, 1, "0.9 to 1.1; 0.1 and 2 (TRL)", (
        RATE, "log-probabilities are stale: the answers were sampled by an older policy", "too many epochs on the same answers"),
        "lower learning_rate or ppo_epochs; check which policy's log-probabilities the update divides by"),
    Detector("D7", "ratio before the first update", onpolicy.first_ratio, ON_POLICY, 1, "1 within 1e-3 (float32), 1e-2 (bf16)", (
        "rollout and update compute log-probabilities differently: temperature, precision, dropout or attention kernel",
        "log-probabilities are stale: the answers were sampled by an older policy"),
        "compute old log-probabilities with the update's own pass; switch dropout off; one temperature in all passes"),
    Detector("D8", "clip fraction", onpolicy.clip_fraction, ON_POLICY, 5, "0.3 for 5 steps", (
        RATE, "too many epochs on the same answers", "cliprange is too small"),
        "halve learning_rate; fewer ppo_epochs"),
    Detector("D9", "entropy collapse", onpolicy.entropy_collapse, ON_POLICY, 2, "0.3 and 0.1 of the first step's", (
        "beta is too small: nothing pays for staying varied", RATE, "one kind of answer scores far above all others"),
        "raise beta; lower learning_rate; look at what the best-scored answers share"),
    Detector("D10", "length exploit", onpolicy.length_exploit, ON_POLICY, onpolicy.SMOOTH,
        "1.5 x the start's length, and r > 0.5 of score and length", (
        "the reward pays for length", "the labels prefer longer answers", "missing_eos_penalty is too small"),
        "set length_penalty; compare answers of equal length; look at `longer_wins` of the reward model; do not promote"),
    Detector("D11", "answers that do not end", onpolicy.truncation, ON_POLICY, onpolicy.EOS_WINDOW,
        "0.3 without EOS, and 0.1 (3 SE) more than at the start", (
        "an answer that was cut costs too little (missing_eos_penalty)", "the reward pays for length",
        "pad and EOS are one token, or SFT never learnt to stop"),
        "raise missing_eos_penalty or max_new_tokens; check SFT's EOS rate"),
    Detector("D12", "repetition", onpolicy.repetition, ON_POLICY, onpolicy.SMOOTH, "0.5, or twice the start's (and 0.2 more)", (
        HACKED, "beta is too small: nothing pays for staying varied", RATE),
        "raise beta; go back to an earlier snapshot; label such answers and train the reward model again"),
    Detector("D13", "proxy up, judge down", onpolicy.proxy_gold_gap, POLICIES, onpolicy.SMOOTH + onpolicy.EVALUATIONS,
        "2 SE below the judge's best while the proxy is above, 3 evaluations (Gao et al. 2022)", (
        "over-optimisation: the policy has left what the reward model knows", "the reward points the wrong way", HACKED),
        "stop at the judge's peak; raise beta; label the new answers and train the reward model again"),
    Detector("D14", "reward models disagree", onpolicy.disagreement, ON_POLICY, 2 * onpolicy.SMOOTH, "twice the start's", (
        "the policy has left what the reward models know", "beta is too small for the size of the rewards"),
        "set deviations (mean less sd, Coste et al. 2024); label these answers; raise beta"),
    Detector("D15", "reward saturation", onpolicy.saturation, ON_POLICY, 1, "sd 1e-6, or 0.9 at the highest score", (
        "the reward is constant on these prompts: nothing can be learnt from them", "score_clip is too small",
        "every prompt is solved already"),
        "drop such prompts; raise score_clip; check that the reward reads the answer"),
    Detector("D16", "value function", onpolicy.value_explosion, ON_POLICY, 3,
        "explained variance < 0 for 10, squared error > 5 return variances for 3; warm-up 20 steps", (
        "the critic's steps are too large (learning_rate, vf_coef)",
        "returns change faster than the critic learns: scores are not normalised", "the critic began far from the returns"),
        "lower vf_coef or learning_rate; normalise_scores; critic_warmup_steps; critic: reward", onpolicy.VALUE_WARMUP),
    Detector("D17", "chosen answers become unlikely", preferences.displacement, ("offline",), preferences.SMOOTH,
        "0.5 nats a token, or 20 % of the reference's log-probability", (
        RATE, "chosen and rejected are nearly the same text: pushing one down pushes the other", "beta is too small"),
        "lower learning_rate; pairs_per_prompt: 1 (the most decisive); raise beta"),
    Detector("D18", "dead preference run", preferences.dead_run, ("offline", "reward"), preferences.DEAD,
        "loss ln 2 within 1e-4 and gradient < 1e-5 for 20 steps", (
        "chosen and rejected are the same", "nothing is trained: the adapter is frozen or learning_rate is 0"),
        "compare the two columns of the pairs; check which weights are trained"),
    Detector("D19", "labels flipped, or learnt by heart", preferences.overfit_or_flipped, ("reward",), 1,
        "a coin's share at p > 0.05; training 0.15 above validation", (
        "what decides the labels cannot be seen in the text, or there are too few pairs", "chosen and rejected are swapped",
        "over-fitting: training pairs are learnt by heart"),
        "check the labels' order against trusted pairs (prefloop data check --golden); more pairs; fewer epochs or layers"),
    Detector("D20", "reward model's calibration", preferences.calibration, ("reward",), 1, "expected calibration error 0.1", (
        "over-confident: too many epochs or too high a learning rate", "the test pairs are labelled with another temperature"),
        "fewer epochs; divide the scores by a temperature fitted on validation pairs; PPO normalises scores anyway"),
    Detector("D25", "stall", anyrun.stall, EVERY, anyrun.STALL_WINDOW, "3 x the median step, 3 steps", (
        "another process takes the processor or the memory", "answers became much longer", "the disk is slow or full"),
        "look at the machine and at tokens/response_length", anyrun.STALL_LEAST),
    Detector("D26", "a step that does not repeat itself", anyrun.unrepeatable, EVERY, 1, "equal numbers", (
        "a damaged state or memory", "another runtime than before: threads, workers, library versions",
        "nondeterministic operations"),
        "run again from the start on another machine; compare the tags of the two MLflow runs"),
)  # fmt: skip


def examine(record: Record) -> list[Finding]:
    """What all detectors say of a run: alarms first, then by first step."""
    found = [_finding(detector, detector.find(record)) for detector in DETECTORS if record.method in detector.methods]
    return sorted((one for one in found if one is not None), key=lambda one: (one.level != "alarm", one.first_step, one.detector))


def method_of(columns: Iterable[str]) -> Method:
    """What kind of run has these columns in its history."""
    names = set(columns)
    if "objective/kl" in names:
        return "on_policy"
    if "rewards/margins" in names:
        return "offline"
    return "reward" if "margin" in names else "sft"


def detector_of(id: str) -> Detector:
    """The row with this id; KeyError for an unknown one."""
    return {detector.id: detector for detector in DETECTORS}[id]


def _finding(detector: Detector, hits: list[Hit]) -> Finding | None:
    if not hits:
        return None
    worst = [hit for hit in hits if hit.level == "alarm"] or hits
    first, last = worst[0], worst[-1]
    at_first = [hit for hit in worst if hit.step == first.step]
    causes = tuple(dict.fromkeys([*(hit.cause for hit in at_first if hit.cause), *detector.causes]))
    more = f"; {len(worst)} steps, the last is {last.step}" if len({hit.step for hit in worst}) > 1 else ""
    return Finding(
        detector=detector.id,
        signal=detector.signal,
        level=first.level,
        value=first.value,
        limit=first.limit,
        first_step=first.step,
        last_step=last.step,
        steps=len({hit.step for hit in worst}),
        evidence="; ".join(hit.evidence for hit in at_first) + more,
        causes=causes,
        remedy=detector.remedy,
        action=last.action,
    )
