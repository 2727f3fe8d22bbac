"""Claims as tests write them down."""

from vigor_jax.rewards.claims.claim import Attribute, Claim, Number, Place, Relation


def value(claim: Claim) -> str:
    """What a claim says: "2-3", "left top", "above sink", "color:red"."""
    match claim.value:
        case Number(least, most, narrowed):
            return f"{least}-{'' if most is None else most}{'~' if narrowed else ''}"
        case Place(horizontal, vertical):
            return " ".join(filter(None, (horizontal, vertical)))
        case Relation(name, target):
            return f"{name} {target.phrase}"
        case Attribute(kind, name):
            return f"{kind}:{name}"


def written(text: str, claims: list[Claim]) -> list[str]:
    """The words, the phrase and the value of each claim."""
    return [f"{text[slice(*claim.span)]} | {claim.subject.phrase} | {value(claim)}" for claim in claims]
