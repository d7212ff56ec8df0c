"""What the numbers of a quickstart say, in sentences that hold as far as their errors allow."""

import math
from collections.abc import Sequence

import numpy as np

import slt_jax as slt
from slt_jax.estimators.result import with_error
from slt_jax.models import zoo

MANY = 3.0
"""Standard errors from which on a number is told from zero, or from another one."""

INDUCTION_SCORE = 0.1


def reading(
    llc: slt.LLCResult,
    heads: slt.RefinedLLC,
    chi: slt.Susceptibilities,
    scores: zoo.HeadScores,
) -> list[str]:
    """Say what the results mean, in sentences that are true of these numbers.

    Args:
        llc: of the whole model.
        heads: of every head.
        chi: of the same heads, by token.
        scores: attention of the heads on repeated random tokens.
    """
    induction = [name for name in scores.heads_above(INDUCTION_SCORE) if name in chi.components]
    return [
        of_the_model(llc),
        of_the_heads(heads),
        *of_the_data(chi),
        *of_induction(chi, induction),
        of_the_control(chi),
    ]


def of_the_model(llc: slt.LLCResult) -> str:
    """Read the learning coefficient of the whole model."""
    head = f"The learning coefficient of the model is {with_error(llc.mean, llc.standard_error)}"
    if math.isfinite(llc.control):
        share, error = 100 * llc.signal, 100 * llc.signal_error
        told = with_error(share, error) if error < 0.5 else f"{share:.0f} ± {error:.0f}"
        held = f"the data hold the weights back by {told} %"
        if not share > 2 * error:
            held = "so that the data are not seen to hold the weights back"
        head += (
            f" at nβ {llc.n_beta:.0f} and γ {llc.localization:.0f}; without data the same chains "
            f"read {with_error(llc.control, llc.control_error)}: {held}"
        )
    return f"{head}. {_trust([str(llc.verdict)])}"


def of_the_heads(heads: slt.RefinedLLC) -> str:
    """Read the refined learning coefficients: whether the largest and the smallest differ."""
    values, errors = heads.llc[:, 0], heads.standard_error[:, 0]
    low, high = int(np.argmin(values)), int(np.argmax(values))
    distance = (values[high] - values[low]) / math.hypot(errors[high], errors[low])
    written = {
        k: f"{heads.components[k]} ({with_error(values[k], errors[k])})" for k in (low, high)
    }
    if distance > MANY:
        text = f"Of the heads, {written[high]} is the most complex and {written[low]} the least."
    else:
        text = f"The heads differ by no more than their errors, {written[low]} to {written[high]}."
    return f"{text} {_trust(heads.verdicts.ravel().tolist())}"


def of_the_data(chi: slt.Susceptibilities) -> list[str]:
    """Count, for every data set, the heads that express it and those that hold it back."""
    table = chi.by_dataset()
    pairs = (table.susceptibility, table.standard_error), (table.control, table.control_error)
    z, null = (values / np.maximum(errors, 1e-300) for values, errors in pairs)
    sentences = []
    for column, name in enumerate(table.entries.dataset.tolist()):
        express, resist = _counts(z[:, column])
        text = (
            f"{name.capitalize()}: {express} of {len(z)} heads express it (χ < 0 by more than "
            f"{MANY:.0f} standard errors), {resist} hold it back"
        )
        if np.isfinite(null).all():
            text += "; without data {} and {}".format(*_counts(null[:, column]))
        sentences.append(f"{text}.")
    return sentences


def _counts(z: np.ndarray) -> tuple[int, int]:
    """Count what lies clearly below zero, and what lies clearly above."""
    return int(np.sum(z < -MANY)), int(np.sum(z > MANY))


def of_induction(chi: slt.Susceptibilities, induction: Sequence[str]) -> list[str]:
    """Compare the heads that attend by induction with the others, on repeated random tokens.

    Compared is χ̂ in units of its largest possible size, which is a scale that heads share. The
    two groups are apart if the closest two heads of them are, by their errors. Heads whose size
    could not be estimated are left out, by name.
    """
    table = chi.correlation().by_dataset()
    if "repeated" not in table.entries.dataset:
        return []
    column = table.entries.dataset.tolist().index("repeated")
    values = dict(zip(table.components, table.susceptibility[:, column], strict=True))
    errors = dict(zip(table.components, table.standard_error[:, column], strict=True))
    finite = (name for name in values if math.isfinite(values[name] + errors[name]))
    known = sorted(finite, key=values.__getitem__)
    own = [name for name in known if name in induction]
    rest = [name for name in known if name not in induction]
    if not own or not rest:
        return []
    # The two heads between which the groups would part, whichever of them is the lower.
    pairs = (own[0], rest[-1]), (rest[0], own[-1])
    upper, lower = max(pairs, key=lambda pair: values[pair[0]] - values[pair[1]])
    distance = (values[upper] - values[lower]) / math.hypot(errors[upper], errors[lower])
    verb = "are set apart from" if distance > MANY else "are not set apart from"
    spans = [f"{values[names[0]]:+.2f} to {values[names[-1]]:+.2f}" for names in (own, rest)]
    sentence = (
        f"The heads that attend by induction ({', '.join(sorted(own))}) {verb} all others by χ on "
        f"repeated random tokens: {spans[0]} of the largest possible size, against {spans[1]}, "
        f"with errors up to {max(errors[name] for name in known):.2f}."
    )
    lost = [name for name in values if name not in known]
    left_out = f" The size is not known, and left out, of {', '.join(lost)}." if lost else ""
    return [sentence + left_out]


def of_the_control(chi: slt.Susceptibilities) -> str:
    """Say how much of the matrix the chains without data give as well."""
    correlation = float(np.nanmedian(chi.against_control().correlation))
    return (
        "Without data (nβ = 0), where chains know of nothing but the localization, the tokens of a "
        f"head correlate {correlation:+.2f} with those above (median over heads): what is common "
        f"to both says nothing of what was learnt. {_trust([str(chi.verdict)])}"
    )


def _trust(verdicts: Sequence[str]) -> str:
    """Say what the verdicts are; those that are not ok by name, with how many there are."""
    names = [text.partition(":")[0] for text in verdicts]
    bad = [name for name in dict.fromkeys(names) if name != "ok"]
    if not bad:
        return "Verdict: ok." if len(names) == 1 else f"All {len(names)} verdicts: ok."
    told = ", ".join(f"{name} ({names.count(name)} of {len(names)})" for name in bad)
    return f"Verdict: {bad[0]}." if len(names) == 1 else f"Verdicts that are not ok: {told}."
