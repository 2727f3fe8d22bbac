"""The options of CHAIR, and how captions, saved or asked for, become figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import chair
from vigor_jax.evaluation.benchmarks.lemmas import LemmaSynonyms
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.image_names import first
from vigor_jax.evaluation.metrics import Metrics, chair_metrics
from vigor_jax.evaluation.protocol import OWN, Protocol, file_version, read_protocol
from vigor_jax.evaluation.saved_captions import read_captions
from vigor_jax.evaluation.wording import as_kept, requested

PROMPT = "Describe this image in detail."
PARSERS = ("singular", "lemma")


@dataclasses.dataclass(frozen=True)
class ChairCommand:
    """CHAIR: how much of what captions mention is not there?

    Attributes:
      out: gets `metrics.json`, and `captions.json` with what was found in each caption.
      objects: what is in the images: JSON {image: [object, ...]}, or COCO's instances and captions; several files add
        to each other.
      captions: saved captions, with `image` or `image_id` and `text` or `caption`; or give a model.
      synonyms: CHAIR's table of names; by default each object's own name and its plural.
      as_published: find what the authors' script finds, which misses "bus" and a few more.
      protocol: how a model is asked and captions are read: "opera-64", "opera-512", "lure", "fisao", "paper", or a YAML
        file (docs/evaluation.md); by default, "own", as the other options say.
      prompt: what a model is asked for a caption with, where the protocol does not say.
      limit: only this many images, the first by name; 0 takes all.
    """

    out: Path
    objects: tuple[Path, ...]
    captions: Path | None = None
    synonyms: Path | None = None
    as_published: bool = True
    protocol: str = OWN
    prompt: str = PROMPT
    limit: int = 0

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads captions, or asks for them."""
        if (model is None) == (self.captions is None):
            raise InputError("chair: give either --captions, or --model and --images")
        protocol = read_protocol(self.protocol, "chair")
        protocol, synonyms = self._reading(protocol)
        known = chair.read_annotations(self.objects, synonyms)
        extra = 0
        if self.captions:
            saved = read_captions([self.captions], known.images, "objects")
            extra = len(saved.extra)
            images = first((image for image, _ in saved.pairs), self.limit)
            reference = known.reference(synonyms, images=images)
            captions = [(image, text) for image, text in saved.pairs if image in reference.objects]
            protocol = as_kept(protocol, [self.captions])
        else:
            assert model
            protocol = requested(protocol, self.prompt, PROMPT)
            reference = known.reference(synonyms, images=model.images)
            images = first(reference.objects, self.limit)
            asked = [(image, protocol.prompt or "") for image in images]
            captions = list(zip(images, model.answer("captions", asked, protocol=protocol), strict=True))
            protocol = model.asking(protocol)
        checked = [chair.check_caption(image, protocol.read(text), reference) for image, text in captions]
        self._write(checked, [text for _, text in captions])
        how = "as the authors' script finds them" if self.as_published else "blind spots of the script removed"
        return {
            **chair_metrics(checked),
            "names": f"{self.synonyms}, {how}" if self.synonyms else "the objects' own names",
            "policy": {"limit": self.limit, "prompt": protocol.prompt if model else None},
            "protocol": protocol.used(images={"number": len(images)}).stored(),
            **({"extra_answers": extra} if extra else {}),
        }

    def _reading(self, protocol: Protocol) -> tuple[Protocol, Synonyms | None]:
        """How words are found, by the protocol and the options."""
        if protocol.parser not in (None, *PARSERS):
            raise InputError(
                f"protocol {protocol.name}: expected a parser of {', '.join(PARSERS)}, got {protocol.parser!r}"
            )
        if self.synonyms is None:
            return protocol.used(parser="names"), None
        table = file_version(self.synonyms)
        if protocol.parser == "lemma":
            if not self.as_published:
                raise InputError(
                    f"--as_published: protocol {protocol.name} reads words by their lemma, as published; leave it out"
                )
            return protocol.used(table=table), LemmaSynonyms.read(self.synonyms)
        parser = "singular" if self.as_published else "singular, blind spots removed"
        synonyms = Synonyms.read(self.synonyms, as_published=self.as_published)
        return protocol.used(parser=parser, table=table), synonyms

    def _write(self, checked: Sequence[chair.CheckedCaption], texts: Sequence[str]) -> None:
        details: list[Mapping[str, object]] = [
            {
                "image": one.image,
                "text": text,
                "mentions": [mention.object for mention in one.mentions],
                "hallucinated": [m.object for m, absent in zip(one.mentions, one.hallucinated, strict=True) if absent],
            }
            for one, text in zip(checked, texts, strict=True)
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "captions.json").write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n", "utf-8")
