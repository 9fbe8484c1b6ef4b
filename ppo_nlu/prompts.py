"""What the model is asked, how its answer is read, and what the answer earns.

A question has one of two forms. `tags`, the official code's, is plain text; the words are ours:

    System_prompt: <role and task>
    Answer in this form: <Judgement> (only "Yes" or "No") </Judgement> <Analysis> (..) </Analysis>
    Prompt: <the instance>
    Assistant:
    <Judgement>

`chat` is the model's own chat template around `messages`; the whole answer is the model's turn. The
parser is strict: the text before the first closing tag (`chat`: the whole text, less a final full
stop, for a chat model writes sentences), stripped, must BE one of the answers. Finding an answer
somewhere in the text would let "Yes and No" pass and read "None" as "No" (ppo_nlu/official.py does
that)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.protocol import BadInput

OPEN, CLOSE = "<Judgement>", "</Judgement>"
Form = Literal["tags", "chat"]
Rule = Literal["paper", "official"]


@dataclass(frozen=True)
class Task:
    """A kind of question. role: the system text. fields: (key of the data, name in the prompt).

    words: answers in the order of the labels 0, 1, ...; empty: the answer is a number (STS-B)."""

    name: str
    role: str
    fields: tuple[tuple[str, str], ...]
    words: tuple[str, ...]
    # also ask for a reason, which nothing reads (most GLUE prompts of the official code)
    analysis: bool = False
    # the benchmark's own, see evaluate.py
    metric: str = "accuracy"
    # official R of a closed tag around something that is no answer
    no_word_reward: float = -3.0
    # a small vocabulary without system text (digits)
    plain: bool = False
    # of an answer that is a number: decimals that a supervised model learns to write
    decimals: int = 1
    # what a chat asks before the instance, beside the answers; `role` says it elsewhere
    question: str = ""

    @property
    def number(self) -> bool:
        return not self.words

    def label(self, value: float) -> float:
        """The label as the index of its word (or the number itself); refuses what is no answer."""
        if self.number:
            return float(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and 0 <= value < len(self.words)):
            labels = f"0..{len(self.words) - 1} ({', '.join(self.words)})"
            raise BadInput(f"{self.name}: label {value!r} is not one of {labels}")
        return value

    def word(self, label: float) -> str:
        return f"{label:.{self.decimals}f}" if self.number else self.words[int(label)]

    @property
    def form(self) -> str:
        """What may be answered."""
        if self.number:
            return "a number from 0 to 5"
        return "only " + " or ".join(f'"{word}"' for word in self.words)


NO_YES, YES_NO = (
    ("No", "Yes"),
    ("Yes", "No"),
)  # labels come in the benchmarks' order: entailment is 0
NLI = ("Entailment", "Neutral", "Contradiction")
_SENTENCE = (("sentence", "Sentence"),)
_PAIR = (("sentence1", "Sentence 1"), ("sentence2", "Sentence 2"))
_NLI = (("premise", "Premise"), ("hypothesis", "Hypothesis"))
_QNLI = (("question", "Question"), ("sentence", "Sentence"))
_COPA = (("premise", "Premise"), ("choice1", "Option one"), ("choice2", "Option two"))
_WSC = (("text", "Text"), ("pronoun", "Pronoun"), ("noun", "Noun phrase"))
_BOOLQ = (("passage", "Passage"), ("question", "Question"))
_LINGUIST, _REASONER = "You are a careful linguist.", "You are a careful reasoner."
_ALIKE = "Rate from 0 (unrelated) to 5 (the same meaning) how alike the sentences are."
_RELATES = f"{_REASONER} Decide how the hypothesis relates to the premise."
_ENTAILS = f"{_REASONER} Decide whether the first sentence entails the second."
_ASKS_THE_SAME = "Decide whether the two questions ask the same thing."

# a tag without a yes or no costs 1 in ReCoRD and 3 elsewhere: the official reward table;
# movie (scale cpu), rating (gpu): sentences that people rated; digits (--tiny): grey levels of a
# digit, "is it at least five?"
TASKS = {t.name: t for t in [
    Task("cola", f"{_LINGUIST} Decide whether the sentence is acceptable English.",
         _SENTENCE, NO_YES, True, "matthews"),
    Task("sst2", "You read film reviews. Decide which sentiment the sentence expresses.",
         _SENTENCE, ("Negative", "Positive"), True),
    Task("mrpc", f"{_LINGUIST} Decide whether the two sentences say the same thing.",
         _PAIR, NO_YES, True, "accuracy_f1"),
    Task("qqp", f"You moderate a question site. {_ASKS_THE_SAME}",
         _PAIR, NO_YES, True, "accuracy_f1"),
    Task("stsb", f"{_LINGUIST} {_ALIKE}", _PAIR, (), True, "correlation"),
    Task("mnli", _RELATES, _NLI, NLI),
    Task("qnli", f"{_REASONER} Decide whether the sentence contains the answer to the question.",
         _QNLI, YES_NO, True),
    Task("rte", _ENTAILS, _PAIR, YES_NO, True),
    Task("wnli", f"{_REASONER} Decide whether the second sentence follows from the first.",
         _PAIR, NO_YES, True),
    Task("ax", _RELATES, _NLI, NLI, False, "matthews"),
    Task("cb", _RELATES, _NLI, ("Entailment", "Contradiction", "Neutral"), False,
         "accuracy_macro_f1"),
    Task("copa", f"{_REASONER} Decide which option is the more likely {{question}} of the premise.",
         _COPA, ("Option one", "Option two")),
    Task("wsc", f"{_LINGUIST} Decide whether the pronoun refers to the noun phrase.",
         _WSC, NO_YES),
    Task("wic", f"{_LINGUIST} Decide whether the word has the same meaning in both sentences.",
         (("word", "Word"), *_PAIR), ("Different", "Same")),
    Task("boolq", "You answer questions about a passage. Decide whether the answer is yes.",
         _BOOLQ, NO_YES),
    Task("multirc", "You grade answers. Decide whether the answer to the question is true given "
         "the passage.", (*_BOOLQ, ("answer", "Answer")), ("False", "True"), False, "multirc"),
    Task("record", "You read news. Decide whether the statement is consistent with the passage.",
         (("passage", "Passage"), ("query", "Statement")), NO_YES, False, "record", -1.0),
    Task("axb", _ENTAILS, _PAIR, YES_NO, True, "matthews"),
    Task("axg", _ENTAILS, _PAIR, YES_NO, True),
    Task("movie", "You judge film reviews.", (("sentence", ""),), ("Negative", "Positive"),
         question="Is the sentiment of this sentence positive or negative?"),
    Task("rating", "You rate messages.", (("sentence", ""),), (), False, "correlation", decimals=0,
         question="How positive is this message, from 0 (very negative) to 5 (very positive)?"),
    Task("digits", "", (("pixels", ""),), NO_YES, plain=True),
]}  # fmt: skip


def task(name: str) -> Task:
    """The task `name`; SuperGLUE's RTE is GLUE's."""
    name = "rte" if name == "super_rte" else name
    if name not in TASKS:
        raise BadInput(f"unknown answer format: no task '{name}'; there are {', '.join(TASKS)}")
    return TASKS[name]


def instance(task: Task, fields: Mapping[str, str]) -> str:
    """The fields of one example as text; braces, quotes and newlines in them are just text."""
    missing = [key for key, _ in task.fields if key not in fields]
    if missing:
        what = f"{task.name}: the example lacks {', '.join(missing)}"
        raise BadInput(f"{what} (it has {', '.join(fields)})")
    if task.plain:
        return " ".join(str(fields[key]) for key, _ in task.fields)
    return "\n".join(f"{name}: {fields[key]}" if name else fields[key] for key, name in task.fields)


def prompt(
    task: Task, fields: Mapping[str, str], examples: Sequence[tuple[Mapping[str, str], float]] = ()
) -> str:
    """The question about `fields`, after solved examples; it ends in the opened tag."""
    solved = [(instance(task, f), task.word(label)) for f, label in examples]
    if task.plain:
        shown = "".join(f"{text} {OPEN} {word} {CLOSE} " for text, word in solved)
        return f"{shown}{instance(task, fields)} {OPEN}"
    form = f"{OPEN} ({task.form}) {CLOSE}"
    if task.analysis:
        form += " <Analysis> (a short reason) </Analysis>"
    role = _role(task, fields)
    system = f"System_prompt: {role}\nAnswer in this form: {form}\n"
    shown = "".join(
        f"[Prompt: {text}\nAssistant:\n{OPEN} {word} {CLOSE}]\n" for text, word in solved
    )
    return f"{system}{shown}Prompt: {instance(task, fields)}\nAssistant:\n{OPEN}"


def _role(task: Task, fields: Mapping[str, str]) -> str:
    """COPA's role asks for the cause or for the effect."""
    if task.name != "copa":
        return task.role
    return task.role.replace("{question}", str(fields.get("question", "")))


def messages(
    task: Task, fields: Mapping[str, str], examples: Sequence[tuple[Mapping[str, str], float]] = ()
) -> list[dict[str, str]]:
    """The same question as a chat: each solved example is a turn of its own."""
    turns = [{"role": "system", "content": _role(task, fields)}]
    for shown, label in examples:
        turns.append({"role": "user", "content": _asked(task, shown)})
        turns.append({"role": "assistant", "content": task.word(label)})
    return [*turns, {"role": "user", "content": _asked(task, fields)}]


def _asked(task: Task, fields: Mapping[str, str]) -> str:
    """Asked in front, so that the model reads the instance with the question in mind, and once more
    behind it: else a small chat model writes a sentence where a word is asked for. The words stand
    in the question alone: where they are listed behind, it says the one that is listed first."""
    text = instance(task, fields)
    if task.question:
        ask, again = task.question, f"Answer with one {'number' if task.number else 'word'}."
        return f"{ask} {again}\n\n{text}\n\n{again}"
    unit = "number" if task.number else "phrase" if " " in task.words[0] else "word"
    choice = " from 0 to 5" if task.number else f": {' or '.join(reversed(task.words))}"
    return f"{text}\n\nAnswer with one {unit}{choice}."


def target(task: Task, label: float, form: Form = "tags") -> str:
    """What a supervised model learns to write after the prompt."""
    return task.word(label) if form == "chat" else f" {task.word(label)} {CLOSE}"


def parse(task: Task, text: str, form: Form = "tags") -> float | None:
    """Index of the answer word, or the number; None unless it is ONE answer and nothing else."""
    content, tag, _ = text.partition(CLOSE)
    if bool(tag) != (form == "tags"):
        return None
    content = " ".join(content.split()).lower()
    if form == "chat":
        content = content.removesuffix(".")
    if task.number:
        return float(content) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", content) else None
    words = [w.lower() for w in task.words]
    return words.index(content) if content in words else None


# R of a right, a wrong and an unreadable answer: printed in the paper, and paid by its code. The
# second is twice the first less 1: whitened, they differ in what beta and c_v weigh alone.
REWARDS = {"paper": (1.0, 0.0, -1.0), "official": (1.0, -1.0, -3.0)}


def reward(
    task: Task, text: str, answer: float | None, label: float, rule: Rule = "official"
) -> float:
    """R of `text`, read as `answer`; a number earns 2.5 - |p - y|, an unreadable one -2.5."""
    if task.number:
        return -2.5 if answer is None else 2.5 - abs(answer - label)
    right, wrong, unreadable = REWARDS[rule]
    if answer is None:
        return max(unreadable, task.no_word_reward) if CLOSE in text else unreadable
    return right if answer == label else wrong
