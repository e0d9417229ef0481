"""The nine GLUE tasks and the packaged demonstration: what their rows hold and how they are scored."""

from dataclasses import dataclass, field

from projclust.errors import ProjclustError

DEMO = "demo"


@dataclass(frozen=True)
class Task:
    """One task, with its name in nyu-mll/glue and its title for people.

    Attributes:
        sentences: the names of the one or two columns of text.
        labels: the classes in the order of their numbers; empty for regression (STS-B, scores from 0 to 5).
        validation: for each validation split, the suffix that the names of its metrics get.
    """

    name: str
    title: str
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: dict[str, str] = field(default_factory=lambda: {"validation": ""})


TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        Task("sst2", "SST-2", ("sentence",), ("negative", "positive")),
        Task("mrpc", "MRPC", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("stsb", "STS-B", ("sentence1", "sentence2"), (), ("pearson", "spearmanr")),
        Task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation={"validation_matched": "_matched", "validation_mismatched": "_mismatched"},
        ),
        Task("qnli", "QNLI", ("question", "sentence"), ("entailment", "not_entailment")),
        Task("rte", "RTE", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
        Task("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
        Task(DEMO, DEMO, ("sentence",), ("negative", "positive")),
    )
}
GLUE = tuple(name for name in TASKS if name != DEMO)


def parse_tasks(text: str) -> tuple[str, ...]:
    """Read the value of `--tasks`: names with commas between them, or `all` for the nine of GLUE."""
    names = [name.strip().lower().replace("sts-b", "stsb").replace("sst-2", "sst2") for name in text.split(",")]
    chosen = [task for name in names if name for task in (GLUE if name == "all" else (name,))]
    for name in chosen:
        if name not in TASKS:
            raise ProjclustError(f"there is no task {name!r}: --tasks takes all or some of {', '.join(TASKS)}")
    if not chosen:
        raise ProjclustError(f"--tasks is empty: name all or some of {', '.join(TASKS)}")
    return tuple(dict.fromkeys(chosen))
