"""The options of ``method=tailored``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from fcot.fields import resolved


@dataclass
class ExamConfig:
    """How a round's student answers the train problems."""

    samples: int = 4  # answers drawn per problem
    temperature: float = 1.0
    top_k: int | None = 50  # likeliest tokens they are drawn from; null for all
    max_new_tokens: int | None = None  # limit of an answer; null takes the student's


@dataclass
class FeedbackConfig:
    """What a round learns beside what the rounds before it learnt."""

    source: str = "feedback"  # plain: as many more plain rationales of the same problems; self: the exam's own right answers
    mistakes: int = 1  # shown in one request
    requests: int = 1  # per problem, each about other mistakes
    max_requests: int | None = None  # per round, problems that fail most first; null for no limit
    hint: bool = True  # tell the teacher the right answer
    max_tokens: int = 512  # limit of a reply
    template: str | None = resolved(MISSING, "the text")  # text with {question} and {mistakes}; may hold {hint} and {trigger}
    path: str | None = resolved(None, "the text")  # file with the template; takes its place


@dataclass
class ReflectionConfig:
    """Self-reflection: a triplet loss of a rationale, another one and a mistake on the same problem."""

    weight: float = 0.5  # paper B's lambda; 0 leaves it out
    margin: float = 1.0
    representation: str = "last"  # state of a completion's last token; rationale: of its rationale's last; mean: of all
    max_tokens: int = 192  # of a completion that are looked at


@dataclass
class TailoredConfig:
    """Paper B's rounds of exam, feedback and self-reflection."""

    name: str = "tailored"
    rounds: int = 3  # at most
    patience: int | None = None  # end after so many rounds without a better validation accuracy
    min_mistakes: int = 1  # end where the student fails fewer train problems
    start: str = "previous"  # a round begins with the previous round's student; pretrained: with the untrained one
    accumulate: bool = True  # train on the samples of all rounds so far; false: on the round's own
    round_weights: list[float] | None = None  # of each round's samples in the loss; null for 1
    demonstrations: int = resolved(0, "how many are shown, in the first exam as well")  # worked train problems before each question
    exam: ExamConfig = field(default_factory=ExamConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)
