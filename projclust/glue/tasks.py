"""The nine GLUE tasks and the packaged demonstration: what their rows hold and how they are scored."""

from dataclasses import dataclass, field

from projclust.errors import ProjclustError

DEMO = "demo"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as nyu-mll/glue calls its configuration.
        title: as people write it.
        sentences: the columns of text, one or two.
        labels: the classes in the order of their numbers; empty for regression (STS-B, scores of 0 to 5).
        metrics: the official ones.
        validation: the suffix that the names of the metrics get, for each validation split.
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
    """The tasks that `--tasks` names: a list with commas, or `all` for the nine of GLUE.

    Raises:
        ProjclustError: there is no such task.
    """
    names = [name.strip().lower().replace("sts-b", "stsb").replace("sst-2", "sst2") for name in text.split(",")]
    chosen = [task for name in names if name for task in (GLUE if name == "all" else (name,))]
    for name in chosen:
        if name not in TASKS:
            raise ProjclustError(f"there is no task {name!r}: --tasks takes all or some of {', '.join(TASKS)}")
    if not chosen:
        raise ProjclustError(f"--tasks is empty: name all or some of {', '.join(TASKS)}")
    return tuple(dict.fromkeys(chosen))
